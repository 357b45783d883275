// The loops of masking.py over the rows of a micro-batch, draw for draw: see there what they do.
// Chooses the same tokens and replacements, bit for bit; tests/lert_ds/data/test_native_masking.py
// holds the two together.

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <utility>
#include <vector>

namespace {

// Philox 4x64-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"); as in NumPy
// the counter is raised before each block of four.
class Draws {
 public:
  Draws(uint64_t seed, uint64_t stream, uint64_t epoch, uint64_t index)
      : counter_{0, 0, index, epoch}, key_{seed, stream} {}

  uint64_t bits() {
    if (place_ == 4) next_block();
    return block_[place_++];
  }
  double share() { return static_cast<double>(bits() >> 11) * 0x1p-53; }
  uint64_t below(uint64_t limit) { return ((bits() >> 32) * limit) >> 32; }

 private:
  using Wide = unsigned __int128;

  void next_block() {
    for (auto& word : counter_) {
      if (++word) break;
    }
    std::array<uint64_t, 4> c = counter_;
    std::array<uint64_t, 2> k = key_;
    for (int round = 0; round < 10; ++round) {
      const Wide first = static_cast<Wide>(0xD2E7470EE14C6C93ULL) * c[0];
      const Wide second = static_cast<Wide>(0xCA5A826395121157ULL) * c[2];
      c = {static_cast<uint64_t>(second >> 64) ^ c[1] ^ k[0], static_cast<uint64_t>(second),
           static_cast<uint64_t>(first >> 64) ^ c[3] ^ k[1], static_cast<uint64_t>(first)};
      k[0] += 0x9E3779B97F4A7C15ULL;
      k[1] += 0xBB67AE8584CAA73BULL;
    }
    block_ = c;
    place_ = 0;
  }

  std::array<uint64_t, 4> counter_, block_{};
  std::array<uint64_t, 2> key_;
  int place_ = 4;
};

struct Ngram {
  int first, count;
};

class Row {
 public:
  // Words are runs of tokens from one that opens a word to the next; see `find_words`.
  void find_words(const uint16_t* ids, const uint8_t* word_starts, int length,
                  const uint8_t* never_masked) {
    starts.clear();
    sizes.clear();
    tokens = 0;
    bool fixed_before = true;
    for (int place = 0; place < length; ++place) {
      const bool fixed = never_masked[ids[place]];
      if (!fixed) {
        if (fixed_before || word_starts == nullptr || word_starts[place]) {
          starts.push_back(place);
          sizes.push_back(0);
        }
        ++sizes.back();
        ++tokens;
      }
      fixed_before = fixed;
    }
  }

  // See `choose_ngrams`. `borders` are the cumulative shares of the lengths but the last.
  void choose_ngrams(int budget, Draws& draws, const double* borders, int lengths) {
    ngrams.clear();
    const int words = static_cast<int>(starts.size());
    if (!words || !budget) return;
    stretches.clear();
    for (int word = 0, before = 0; word < words; before += sizes[word++]) {
      stretches.push_back(starts[word] - before);
    }
    stretches.resize(words + lengths, -1);
    drawn.clear();
    for (int draw = 0; draw < budget; ++draw) {
      const double share = draws.share();
      drawn.push_back(1 + static_cast<int>(
          std::upper_bound(borders, borders + lengths - 1, share) - borders));
    }
    keys.clear();
    for (int word = 0; word < words; ++word) keys.emplace_back(draws.bits(), word);
    std::sort(keys.begin(), keys.end());
    order.clear();
    for (const auto& key : keys) order.push_back(key.second);
    taken.assign(words, 0);
    const int gap = place(budget);
    if (gap) fill(gap);
  }

  std::vector<int> starts, sizes;
  std::vector<Ngram> ngrams;
  std::vector<uint8_t> taken;
  int tokens = 0;

 private:
  bool fits(int first, int count) const {
    if (stretches[first] != stretches[first + count - 1]) return false;
    return std::none_of(&taken[first], &taken[first] + count, [](uint8_t is) { return is; });
  }

  // See `_place`.
  int place(int gap) {
    const int words = static_cast<int>(order.size());
    int longest = static_cast<int>(stretches.size()), at = 0;
    for (const int draw : drawn) {
      int count = std::min(draw, longest), misses = 0, first = order[at];
      while (!fits(first, count)) {
        at = at + 1 == words ? 0 : at + 1;
        first = order[at];
        if (++misses == words) {
          longest = --count;
          misses = 0;
          if (!count) return gap;
        }
      }
      int size = 0;
      for (int word = first; word < first + count; ++word) size += sizes[word];
      while (size > gap) size -= sizes[first + --count];
      if (!count) return gap;
      std::fill_n(&taken[first], count, 1);
      ngrams.push_back({first, count});
      gap -= size;
      if (!gap) break;
    }
    return gap;
  }

  // See `_fill`.
  void fill(int gap) {
    std::vector<int> words;
    int filled = subset(gap, true, words);
    if (filled < gap) {
      int budget = gap;
      for (size_t word = 0; word < sizes.size(); ++word) budget += taken[word] ? sizes[word] : 0;
      const int missing = budget - subset(budget, false, words);
      filled = subset(gap, true, words);
      while (gap - filled > missing) {
        const Ngram last = ngrams.back();
        ngrams.pop_back();
        for (int word = last.first; word < last.first + last.count; ++word) {
          taken[word] = 0;
          gap += sizes[word];
        }
        filled = subset(gap, true, words);
      }
    }
    for (const int word : words) {
      taken[word] = 1;
      ngrams.push_back({word, 1});
    }
  }

  // See `_subset`; `words` are all of `order`, or those that are not taken.
  int subset(int target, bool of_the_rest, std::vector<int>& chosen) const {
    using Sums = std::vector<uint64_t>;
    const auto has = [](const Sums& sums, int bit) { return sums[bit / 64] >> (bit % 64) & 1; };
    Sums sums(target / 64 + 1, 0);
    sums[0] = 1;
    std::vector<std::pair<int, Sums>> steps;
    for (const int word : order) {
      if (of_the_rest && taken[word]) continue;
      const int whole = sizes[word] / 64, part = sizes[word] % 64;
      Sums more = sums;
      for (int at = static_cast<int>(sums.size()) - 1; at >= whole; --at) {
        more[at] |= sums[at - whole] << part;
        if (part && at > whole) more[at] |= sums[at - whole - 1] >> (64 - part);
      }
      if (target % 64 != 63) more.back() &= (uint64_t{1} << (target % 64 + 1)) - 1;
      if (more == sums) continue;
      steps.emplace_back(word, std::move(sums));
      sums = std::move(more);
      if (has(sums, target)) break;
    }
    int best = target;
    while (!has(sums, best)) --best;
    chosen.clear();
    int rest = best;
    for (auto step = steps.rbegin(); step != steps.rend(); ++step) {
      if (has(step->second, rest)) continue;
      chosen.push_back(step->first);
      rest -= sizes[step->first];
    }
    return best;
  }

  std::vector<int> stretches, drawn, order;
  std::vector<std::pair<uint64_t, int>> keys;
};

}  // namespace

extern "C" {

struct Masking {
  double share, mask_share, kept_from;
  const double* borders;
  const uint8_t* never_masked;
  const int64_t* replacements;
  uint64_t seed, stream;
  int64_t limit, lengths, replacement_count, mask_id;
};

// Returns how many places were chosen; `positions` has room for rows · limit of them.
// `rows_of_each` rows that follow each other are of one sample and share its draws.
int64_t lert_ds_mask(const Masking* masking, int64_t rows, int64_t length, int64_t rows_of_each,
                     const uint16_t* ids, const uint8_t* word_starts, const int64_t* epochs,
                     const int64_t* indices, int64_t* input_ids, int64_t* positions) {
  const Masking& m = *masking;
  Row row;
  int64_t found = 0;
  Draws draws(0, 0, 0, 0);
  for (int64_t number = 0; number < rows; ++number) {
    if (number % rows_of_each == 0) {
      const int64_t sample = number / rows_of_each;
      draws = Draws(m.seed, m.stream, static_cast<uint64_t>(epochs[sample]),
                    static_cast<uint64_t>(indices[sample]));
    }
    const int64_t offset = number * length;
    const uint16_t* tokens = ids + offset;
    std::copy_n(tokens, length, input_ids + offset);
    row.find_words(tokens, word_starts == nullptr ? nullptr : word_starts + offset,
                   static_cast<int>(length), m.never_masked);
    // As Python rounds: a half to the even side.
    const auto wanted = static_cast<int64_t>(std::nearbyint(m.share * row.tokens));
    const int64_t budget = row.tokens ? std::min(m.limit, std::max<int64_t>(1, wanted)) : 0;
    row.choose_ngrams(static_cast<int>(budget), draws, m.borders, static_cast<int>(m.lengths));
    const int64_t begin = found;
    if (!row.ngrams.empty()) {
      for (size_t word = 0; word < row.sizes.size(); ++word) {
        if (!row.taken[word]) continue;
        for (int place = 0; place < row.sizes[word]; ++place) {
          positions[found++] = offset + row.starts[word] + place;
        }
      }
    }
    // One draw a token for what becomes of it, then one a token for what may replace it.
    Draws others = draws;
    for (int64_t place = begin; place < found; ++place) others.bits();
    for (int64_t place = begin; place < found; ++place) {
      const double share = draws.share();
      const int64_t other = m.replacements[others.below(m.replacement_count)];
      int64_t& id = input_ids[positions[place]];
      if (share < m.mask_share) {
        id = m.mask_id;
      } else if (share < m.kept_from) {
        id = other;
      }
    }
    draws = others;
  }
  return found;
}
}
