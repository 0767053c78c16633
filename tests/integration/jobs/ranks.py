"""One of two ranks under ``paddle.distributed.launch``: DataParallel, with ``run.attach``."""

from __future__ import annotations

import paddle
import paddle.distributed as dist
from report import BATCH, Data, Net, digest, hand_over, report, scrape, start

if __name__ == "__main__":
    dist.init_parallel_env()
    net = Net()
    model = paddle.DataParallel(net)
    clip = paddle.nn.ClipGradByGlobalNorm(0.05)
    optimizer = paddle.optimizer.AdamW(0.1, parameters=model.parameters(), grad_clip=clip)
    run = start("ranks").attach(model=model, optimizer=optimizer, samples=BATCH)
    sampler = paddle.io.DistributedBatchSampler(Data(20 * 2 * BATCH), BATCH, shuffle=False)
    norms = []
    for x, y in paddle.io.DataLoader(Data(20 * 2 * BATCH, sleep=0.001), batch_sampler=sampler):
        loss = paddle.nn.functional.cross_entropy(model(x), y)
        run.log(loss=loss)
        loss.backward()
        norms.append(sum(float((p.grad.numpy().astype("float64") ** 2).sum()) for p in net.parameters()) ** 0.5)
        optimizer.step()
        optimizer.clear_grad()
    if run.rank == 0:
        paddle.save(model.state_dict(), "net.pdparams")
    report("rank", scrape(run), rank=run.rank, norms=norms, digest=digest(net), loss=loss.item())
    hand_over()
