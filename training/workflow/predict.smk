# Many studies, a kernel a shard (training/workflow/shards.py).  A shard's report is written when its kernel has ended.
#
#   snakemake --snakefile predict.smk --directory OUT/.workflow --config out=OUT shards=N weights=DIR time_limit=S
import sys
from pathlib import Path

from training.workflow.shards import REPORT, shard_folder

OUT = Path(config["out"]).resolve()
SHARDS = [shard_folder(OUT, number) for number in range(int(config["shards"]))]


rule all:
    input:
        [local(str(shard / "out" / REPORT)) for shard in SHARDS],


rule kernel:
    output:
        local(str(OUT / "shards" / "{shard}" / "out" / REPORT)),
    log:
        local(str(OUT / "logs" / "{shard}.log")),
    resources:
        **({"gpu": 1} if config.get("gpu") else {}),
    params:
        python=sys.executable,
        shard=lambda wildcards: OUT / "shards" / wildcards.shard,
        weights=Path(config["weights"]).resolve(),
        limit=config["time_limit"],
    shell:
        "{params.python:q} -m training.workflow.run_shard {params.shard:q} {params.weights:q}"
        " --time-limit {params.limit} >> {log:q} 2>&1"
