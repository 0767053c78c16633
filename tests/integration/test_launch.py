"""Identity under Paddle's real launcher: two launches on this machine as the two nodes of one job."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys

SCRIPT = """
import json, paddle.distributed as dist, paddle_exporter
dist.init_parallel_env()
run = paddle_exporter.start(address="127.0.0.1", port=0, linger=0)
run.step(loss=1.0)
print("IDENTITY", json.dumps([run.name, run.identity.info()]), flush=True)
dist.barrier()  # nobody leaves while others still need the store that rank 0 keeps
"""


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def test_ranks_of_two_nodes_agree_on_the_run_and_each_knows_its_place(tmp_path):
    script = tmp_path / "train_it.py"
    script.write_text(SCRIPT)
    command = [sys.executable, "-m", "paddle.distributed.launch", "--nnodes", "2", "--nproc_per_node", "2"]
    command += ["--master", f"127.0.0.1:{free_port()}", "--job_id", "two-nodes"]
    environment = {**os.environ, "PADDLE_EXPORTER_PAGE_DIR": str(tmp_path / "pages"), "PADDLE_EXPORTER_SEED": "7"}
    nodes = [
        subprocess.Popen(
            [*command, "--log_dir", str(tmp_path / node), str(script)],
            env={**environment, "PADDLE_EXPORTER_NODE": node},
            cwd=tmp_path,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for node in ("node-a", "node-b")
    ]
    try:
        for node in nodes:
            node.wait(timeout=120)
    finally:
        for node in nodes:
            node.kill()
            node.wait()

    seen = []
    for log in sorted(tmp_path.glob("node-*/workerlog.*")):
        lines = [line for line in log.read_text().splitlines() if line.startswith("IDENTITY ")]
        seen += [(log.parent.name, *json.loads(line.removeprefix("IDENTITY "))) for line in lines[:1]]
    assert len(seen) == 4
    names = {name for _, name, _ in seen}
    assert len(names) == 1
    assert names.pop().startswith("train_it-")
    assert sorted(info["rank"] for _, _, info in seen) == ["0", "1", "2", "3"]
    for node, _, info in seen:
        assert info["world_size"] == "4"
        assert info["node"] == node
        assert info["seed"] == "7"
        assert info["paddle"]
    by_node = {node: sorted(info["local_rank"] for n, _, info in seen if n == node) for node, _, _ in seen}
    assert by_node == {"node-a": ["0", "1"], "node-b": ["0", "1"]}
