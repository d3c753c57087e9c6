"""Agents that edit code, in whole searches on a real Slurm."""

from collections.abc import Callable

import pytest
import thinking
from llm_server import ScriptedLlm, words
from toy import Toy

pytestmark = pytest.mark.usefixtures("empty_queue")


@pytest.fixture
def slurm(toy: Callable[..., Toy]) -> Callable[..., Toy]:
    def make(*overrides: str) -> Toy:
        return toy(cluster="slurm", k=thinking.K, rounds=thinking.ROUNDS, overrides=overrides)

    return make


@pytest.mark.parametrize("agent", ["llm", "hybrid"])
def test_a_model_that_answers_badly_in_every_round(slurm: Callable[..., Toy], agent: str) -> None:
    with ScriptedLlm(thinking.BadModel(), api_key=thinking.KEY) as server:
        toy = slurm(f"agent={agent}", "agent.share=0.7", *thinking.settings(server))
        thinking.every_slot_is_filled(toy, agent, "llm")
        thinking.output_is_only_quoted(toy, agent, [words(question) for question in server.questions])


def test_killed_in_the_middle_of_a_call(slurm: Callable[..., Toy]) -> None:
    slow = "This is round 2."
    with ScriptedLlm(thinking.BadModel(slow, delay_s=2.0), api_key=thinking.KEY) as server:
        toy = slurm("agent=llm", *thinking.settings(server))
        thinking.killed_while_the_agent_thinks(toy, "killed", server, slow)


def test_a_coding_cli_that_misbehaves_in_most_slots(slurm: Callable[..., Toy]) -> None:
    toy = slurm()
    thinking.every_slot_is_filled(toy, "cli", "cli", thinking.with_stand_in_cli(toy))
    thinking.the_cli_was_shut_in(toy, "cli")
