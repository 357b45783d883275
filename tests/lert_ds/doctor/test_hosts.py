import sys
import time

from lert_ds.doctor.hosts import ProcessHosts, SilenceError

ECHO = """
import json, sys
print("a shell's greeting", flush=True)
print('lert-ds-doctor {"ready": true}', flush=True)
for line in sys.stdin:
    question = json.loads(line)
    print("noise", flush=True)
    print("lert-ds-doctor " + json.dumps({"told": question["ask"]}), flush=True)
"""


def _python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_hosts_are_asked_all_at_once_and_noise_is_passed_over() -> None:
    hosts = ProcessHosts({"a": _python(ECHO), "b": _python(ECHO)}, [1, 2])
    try:
        asked = {"a": {"ask": "time"}, "b": {"ask": "facts"}}
        assert hosts.ask(asked, 20) == {"a": {"told": "time"}, "b": {"told": "facts"}}
        assert hosts.ask({"b": {"ask": "time"}}, 20) == {"b": {"told": "time"}}
        assert hosts.ask({}, 1) == {}
    finally:
        hosts.close()


def test_a_host_that_hangs_is_given_up_in_time_and_not_asked_again() -> None:
    hosts = ProcessHosts({"hangs": _python("import time; time.sleep(600)")}, [1])
    started = time.monotonic()
    first = hosts.ask({"hangs": {"ask": "time"}}, 1)["hangs"]
    second = hosts.ask({"hangs": {"ask": "time"}}, 60)["hangs"]
    hosts.close()
    assert time.monotonic() - started < 10
    assert isinstance(first, SilenceError)
    assert isinstance(second, SilenceError)
    assert str(first) == str(second) == "did not start within 1 s"


def test_a_host_that_hangs_in_a_question_names_it() -> None:
    stuck = ECHO.replace("    question =", "    __import__('time').sleep(600); question =")
    hosts = ProcessHosts({"a": _python(stuck)}, [1])
    assert not isinstance(hosts.ask({}, 1), SilenceError)
    time.sleep(1)  # it has started
    answer = hosts.ask({"a": {"ask": "corpus"}}, 2)["a"]
    hosts.close()
    assert str(answer) == "did not answer (corpus) within 2 s"


def test_one_that_ends_tells_what_it_said_without_secrets() -> None:
    code = "import sys; sys.exit('export: verysecret: not a valid identifier')"
    hosts = ProcessHosts({"a": _python(code)}, [1], secrets=["secret", "verysecret"])
    answer = hosts.ask({"a": {"ask": "time"}}, 20)["a"]
    hosts.close()
    assert str(answer) == "ended with exit code 1: export: ***: not a valid identifier"


def test_a_program_that_is_not_there_is_told() -> None:
    hosts = ProcessHosts({"a": ["no-such-ssh", "a"]}, [1])
    answer = hosts.ask({"a": {"ask": "time"}}, 5)["a"]
    hosts.close()
    assert str(answer).startswith("no-such-ssh cannot be started")
