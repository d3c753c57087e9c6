"""Agents that edit code, in whole searches on this machine: what tests/slurm does not try."""

from collections.abc import Callable

import pytest
import thinking
from llm_server import ScriptedLlm, words
from toy import Toy

pytestmark = pytest.mark.usefixtures("no_slurm")


@pytest.fixture
def local(toy: Callable[..., Toy]) -> Callable[..., Toy]:
    def make(*overrides: str) -> Toy:
        given = ("cluster.max_parallel=2", *overrides)
        return toy(cluster="local", k=thinking.K, rounds=thinking.ROUNDS, overrides=given)

    return make


def test_a_model_that_answers_badly_while_rounds_train(local: Callable[..., Toy]) -> None:
    with ScriptedLlm(thinking.BadModel(), api_key=thinking.KEY) as server:
        toy = local("agent=llm", *thinking.settings(server, prefetch="revise"))
        thinking.every_slot_is_filled(toy, "llm", "llm")
        thinking.output_is_only_quoted(toy, "llm", [words(question) for question in server.questions])


def test_killed_while_the_next_round_is_drafted(local: Callable[..., Toy]) -> None:
    slow = "In training now"
    with ScriptedLlm(thinking.BadModel(slow, delay_s=2.0), api_key=thinking.KEY) as server:
        toy = local("agent=hybrid", "agent.share=0.7", *thinking.settings(server, prefetch="revise"))
        thinking.killed_while_the_agent_thinks(toy, "ahead", server, slow)


def test_interrupted_in_the_middle_of_a_call(local: Callable[..., Toy]) -> None:
    slow = "This is round 1."
    with ScriptedLlm(thinking.BadModel(slow, delay_s=60.0), api_key=thinking.KEY) as server:
        toy = local("agent=llm", *thinking.settings(server, timeout_s=60))
        thinking.interrupted_while_the_agent_thinks(toy, "interrupted", server, slow)


def test_killed_while_coding_clis_work(local: Callable[..., Toy]) -> None:
    thinking.killed_while_clis_work(local(), "killed")
