"""Two real processes train what one trains; a process that dies ends the training with a reason."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import textwrap
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from flmrec_spark.errors import EnvironmentFault
from flmrec_spark.lm import distributed
from flmrec_spark.lm.distributed import World
from flmrec_spark.lm.finetuning import finetune
from tests.prepared import tiny_config

ROOT = Path(__file__).parent.parent.parent
# Momentum keeps a gradient of 1e-9 as small as it is, where AdamW would scale its rounding up to a whole step.
EXACT: dict[str, object] = {
    "optimizer": "sgd",
    "learning_rate": 0.05,
    "dropout": 0.0,
    "bias_dropout": 0.0,
    "save_every": 3,
    "validate_every": 4,
}


def environment(**more: str) -> dict[str, str]:
    own = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    return {**own, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **more}


def torchrun(world: Path, *more: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += [str(ROOT / "scripts/finetune.py"), "--config", str(world / "config.yaml"), *more]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    (line,) = done.stdout.strip().splitlines()  # of one process
    return dict(json.loads(line))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "backbone/model.safetensors") | load_file(folder / "head.safetensors")


def assert_near(world: Path, expected: dict[str, torch.Tensor]) -> None:
    got = weights(world / "checkpoint")
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, rtol=0, atol=1e-6, msg=name)


def test_two_processes_end_with_the_weights_of_one(world):
    config = tiny_config(world, finetune=EXACT)
    alone = finetune(config)
    (world / "checkpoint").rename(world / "alone")
    together = torchrun(world)
    assert (together["status"], together["steps"]) == ("done", alone["steps"])
    assert_near(world, weights(world / "alone"))
    assert finetune(config)["status"] == "already done"


def test_what_two_processes_began_one_can_end(world):
    own = {**EXACT, "accumulate_steps": 2, "adapter": {"method": "lora", "rank": 2}}
    config = tiny_config(world, finetune=own)
    finetune(config)
    (world / "checkpoint").rename(world / "alone")
    assert torchrun(world, "--stop-after", "4")["status"] == "stopped"
    assert not (world / "checkpoint").exists()
    assert finetune(config)["status"] == "done"
    assert_near(world, weights(world / "alone"))


def test_a_process_that_dies_ends_the_other_with_a_reason(world, tmp_path):
    tiny_config(world)
    script = tmp_path / "dies.py"
    script.write_text(
        textwrap.dedent(f"""
        import os, sys
        sys.path.insert(0, {str(ROOT)!r})
        from flmrec_spark.lm.trainer import Trainer
        learn = Trainer.learn
        def dies(self, step):
            if self.world.rank == 1 and self.step == 2:
                os._exit(9)
            return learn(self, step)
        Trainer.learn = dies
        from scripts.finetune import main
        sys.exit(main(sys.argv[1:]))
        """)
    )
    port = str(distributed_port())
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    started = [
        subprocess.Popen(
            [sys.executable, str(script), "--config", str(world / "config.yaml")],
            env=environment(**shared, RANK=str(rank), LOCAL_RANK=str(rank)),
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    told = [process.communicate(timeout=300)[1] for process in started]
    assert [process.returncode for process in started] == [EnvironmentFault.exit_code, 9]
    last = told[0].strip().splitlines()[-1]
    assert "EnvironmentFault: torchrun: process 0 of 2 lost another one" in last
    assert not (world / "checkpoint").exists()


def distributed_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as own:
        own.bind(("127.0.0.1", 0))
        return int(own.getsockname()[1])


def test_one_process_is_a_world_of_its_own(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with distributed.joined() as world:
        assert (world.rank, world.size, world.writes) == (0, 1, True)
        assert (world.agreed("own"), world.sum(2.5)) == ("own", 2.5)
    parameter = torch.nn.Parameter(torch.ones(2))
    World().sum_gradients([parameter])
    assert parameter.grad is None


def test_the_others_wait_for_what_rank_0_does_alone_for_days(monkeypatch):
    """gloo gives up after half an hour by default; factors of a large log, or a validation on a CPU, take longer."""
    for name, value in {
        "WORLD_SIZE": "2",
        "RANK": "0",
        "LOCAL_RANK": "0",
        "MASTER_ADDR": "x",
        "MASTER_PORT": "1",
    }.items():
        monkeypatch.setenv(name, value)

    def begun(*_: object, timeout: timedelta) -> None:
        assert timeout >= timedelta(days=1)
        raise KeyboardInterrupt

    monkeypatch.setattr(dist, "init_process_group", begun)
    with pytest.raises(KeyboardInterrupt), distributed.joined():
        pass


def test_half_of_torchrun_s_variables_are_not_enough(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    for name in ("LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    told = "WORLD_SIZE: got 2 without LOCAL_RANK, MASTER_ADDR, MASTER_PORT, expected torchrun"
    with pytest.raises(EnvironmentFault, match=told), distributed.joined():
        pass
