"""The most likely states of a hidden Markov model whose states are places in a word and flags.

The same answer as `jieba.posseg.viterbi`, which asks every pair of states, in a fraction of the
time: the inside of a word is only asked about a word of its flag, a start only about ends.
"""

import math
from collections.abc import Mapping

State = tuple[str, str]
"""(place in the word: B begin, M middle, E end or S single; flag)."""

_IMPOSSIBLE = -3.14e100
"""Log probability of what the model has never seen."""


class TagModel:
    """The tables of the model, rearranged by what Viterbi's inner loop asks for.

    Numbers stand for states, in the states' order: of equal paths the greater state wins.
    """

    def __init__(
        self,
        states_of: Mapping[str, tuple[State, ...]],
        start: Mapping[State, float],
        transitions: Mapping[State, Mapping[State, float]],
        emissions: Mapping[State, Mapping[str, float]],
    ) -> None:
        """Take the states that each character can have, and log probabilities."""
        self.states = sorted(transitions)
        number_of = {state: number for number, state in enumerate(self.states)}
        self._states_of = states_of
        self._number_of = number_of
        self._emissions = emissions
        self._start = [start[state] for state in self.states]
        self._following = [
            [number_of[after] for after in transitions[state]] for state in self.states
        ]
        self._ends_word = [place in "ES" for place, _ in self.states]
        # What leads to a state: for a start a row over all states, for an inside the one or two.
        self._from_any: list[list[float] | None] = []
        self._from_few: list[list[tuple[int, float]]] = []
        for place, flag in self.states:
            before = [transitions[state].get((place, flag), -math.inf) for state in self.states]
            self._from_any.append(before if place in "BS" else None)
            few = [(state, value) for state, value in enumerate(before) if value > -math.inf]
            self._from_few.append(few if place in "ME" else [])
        self._emitted: dict[str, list[tuple[int, float]]] = {}

    def knows(self, character: str) -> bool:
        """Return whether the model has seen the character."""
        return character in self._states_of

    def best_path(self, characters: str) -> list[State]:
        """Return the most likely state of each of the characters, which must all be known."""
        scores = {
            state: self._start[state] + emission
            for state, emission in self._emitted_by(characters[0])
        }
        origins: list[dict[int, int]] = []
        for character in characters[1:]:
            scores, origin = self._advance(scores, self._emitted_by(character))
            origins.append(origin)
        state = max(scores, key=lambda end: (scores[end], end))
        path = [state]
        for origin in reversed(origins):
            state = origin[state]
            path.append(state)
        return [self.states[state] for state in reversed(path)]

    def _emitted_by(self, character: str) -> list[tuple[int, float]]:
        """Return the states that give `character`, with the log probabilities of doing so."""
        known = self._emitted.get(character)
        if known is None:
            known = self._emitted[character] = [
                (self._number_of[state], self._emissions[state].get(character, _IMPOSSIBLE))
                for state in self._states_of[character]
            ]
        return known

    def _advance(
        self, scores: dict[int, float], emitted: list[tuple[int, float]]
    ) -> tuple[dict[int, float], dict[int, int]]:
        """Return the scores after one more character, and the state that each came from."""
        result, origin = self._step(scores, emitted)
        if result:
            return result, origin
        # No state of this character can follow: take any that can, at the price of a miracle.
        following = {after for state in scores for after in self._following[state]}
        result, origin = self._step(scores, [(state, _IMPOSSIBLE) for state in following])
        if not result:  # and where none can, start afresh after the best so far
            best = max(scores, key=lambda end: (scores[end], end))
            for state, emission in emitted:
                result[state] = scores[best] + self._start[state] + emission
                origin[state] = best
        return result, origin

    def _step(
        self, scores: dict[int, float], emitted: list[tuple[int, float]]
    ) -> tuple[dict[int, float], dict[int, int]]:
        result: dict[int, float] = {}
        origin: dict[int, int] = {}
        ends = sorted((state for state in scores if self._ends_word[state]), reverse=True)
        at_ends = [(state, scores[state]) for state in ends]
        for state, emission in emitted:
            row = self._from_any[state]
            if row is not None:
                # The order of the sums is jieba's, so that its ties are ties here.
                sums = [score + row[before] + emission for before, score in at_ends]
                best = max(sums, default=-math.inf)
                if best > -math.inf:
                    result[state] = best
                    origin[state] = ends[sums.index(best)]
                continue
            best = -math.inf
            for before, probability in self._from_few[state]:
                if before in scores:
                    total = scores[before] + probability + emission
                    if total >= best:  # of equals the greater, which comes later
                        best = result[state] = total
                        origin[state] = before
        return result, origin
