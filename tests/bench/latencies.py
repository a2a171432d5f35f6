"""Records how long requests take at a worker under load, in their order: what simulated rollouts are replayed with.

    python tests/bench/latencies.py --out FILE [--seconds 300] [--share 0.7] [--documents 10] [--threads 1]

Poisson arrivals at a share of what four clients reached beforehand, 1 to --documents short documents a request. One
number a line, in seconds, from when the request should have left; the first line says what was run. Requests queue and
share batches, so neighbours are alike: that is what is wanted (docs/canary-judge.md).
"""

import argparse
import datetime
import json
import random
import sys
from pathlib import Path

from worker import load, servers, workload

DEMO = servers.ROOT / ".state" / "models" / "demo-reranker"
BODIES, POOL = 200, 24


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--share", type=float, default=0.7, help="of the worker's capacity (default: 0.7)")
    parser.add_argument("--documents", type=int, default=10, help=f"a request, at most {POOL} (default: 10)")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    chance = random.Random(workload.SEED)
    requests = workload.build(DEMO, requests=16, documents=POOL)
    bodies = []
    for number in range(BODIES):
        request = requests[number % len(requests)]
        documents = chance.sample(request.documents, chance.randint(1, options.documents))
        bodies.append(json.dumps({"query": request.query, "documents": documents}).encode())
    place = servers.Place(DEMO, DEMO, servers.free_port(), options.threads)
    server = servers.Server(
        servers.ours("worker", ["--precision", "float32"]), place, servers.BENCH / "logs" / "latencies.log"
    )
    with server:
        load.closed(server.url, bodies, 4, 40)
        measured = load.closed(server.url, bodies, 4, 200)
        rate = options.share * len(measured.samples) / measured.seconds
        print(f"{rate:.1f} requests a second for {options.seconds:g} s", flush=True)
        run = load.open_loop(server.url, bodies, rate, options.seconds, workload.SEED)
    failed = sum(sample.status != 200 for sample in run.samples)
    if failed:
        sys.exit(f"{failed} of {len(run.samples)} requests failed: nothing is written")
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    head = f"# {date}: {len(run.samples)} requests, {rate:.1f}/s, 1 to {options.documents} documents, "
    head += f"{options.threads} thread(s), float32, demo model"
    ordered = sorted(run.samples, key=lambda sample: sample.intended)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text("\n".join([head, *(f"{sample.seconds:.4f}" for sample in ordered)]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
