"""Train SASRec on a log and rank the next items; takes seconds with the tiny preset. ``data=`` takes your log."""

import feedgym

result = feedgym.pretrain("sasrec", preset="sasrec-smoke", options={"epochs": 3, "fit.lr": 2e-3})
for agent, metrics in result.summary["agents"].items():
    print(f"{agent:<12} recall@10 {metrics['recall@10']['mean']:.3f}")
print("report:", result.report())
