"""Exact and approximate search: FAISS and usearch beside `aeir bench search`, on the same vectors and threads.

    python search_speed.py --aeir ../../target/release/aeir --threads 2
    python search_speed.py --aeir ../../target/release/aeir --items 5000 --queries 100    # to see that everything runs

aeir makes the vectors, and is timed before and after the others: the ratios are of medians of that one run. JSON goes to
stdout, a table to stderr.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

WANTED_RECALL = 0.95


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--aeir", required=True, help="the aeir program")
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--dimension", type=int, default=512)
    parser.add_argument("--queries", type=int, default=1_000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--storage", default="f32,f16,int8", help="how aeir keeps vectors")
    parser.add_argument("--no-graphs", action="store_true", help="exact search alone")
    return parser.parse_args()


def aeir(flags, folder, graphs):
    command = [flags.aeir, "bench", "search", "--items", flags.items, "--dimension", flags.dimension]
    command += ["--queries", flags.queries, "--threads", flags.threads, "--repeats", flags.repeats]
    command += ["--storage", flags.storage]
    command += ["--vectors", folder, "--json", "--quiet", f"--approximate={'yes' if graphs else 'no'}"]
    output = subprocess.run([str(part) for part in command], check=True, stdout=subprocess.PIPE)
    return json.loads(output.stdout)


def median_seconds(work, repeats):
    found, seconds = work(), []
    for _ in range(repeats):
        start = time.perf_counter()
        found = work()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds), found


def recall(truth, found):
    return sum(len(set(a) & set(b)) for a, b in zip(truth.tolist(), found.tolist())) / truth.size


def at_recall(runs):
    """The fastest run that finds enough."""
    enough = [run for run in runs if run["recall"] >= WANTED_RECALL]
    return max(enough, key=lambda run: run["queries_per_second"], default=None)


def graph_runs(search, truth, queries, repeats):
    runs = []
    for effort in (10, 12, 14, 16, 20, 24, 32, 48, 64, 128, 256):
        seconds, found = median_seconds(lambda: search(effort), repeats)
        runs.append({"effort": effort, "recall": recall(truth, found), "queries_per_second": queries / seconds})
        if runs[-1]["recall"] > 0.995:
            break
    return runs


def peers(flags, items, queries):
    import faiss

    faiss.omp_set_num_threads(flags.threads)
    flat = faiss.IndexFlatIP(flags.dimension)
    flat.add(items)
    seconds, (_, truth) = median_seconds(lambda: flat.search(queries, 10), flags.repeats)
    report = {"faiss": faiss.__version__, "faiss_flat_seconds": seconds}
    scalar = faiss.IndexScalarQuantizer(flags.dimension, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT)
    scalar.train(items)
    scalar.add(items)
    seconds, (_, found) = median_seconds(lambda: scalar.search(queries, 10), 1)
    report |= {"faiss_int8_seconds": seconds, "faiss_int8_recall": recall(truth, found)}
    if flags.no_graphs:
        return report
    graph = faiss.IndexHNSWFlat(flags.dimension, 16, faiss.METRIC_INNER_PRODUCT)
    graph.hnsw.efConstruction = 100
    start = time.perf_counter()
    graph.add(items)
    report["faiss_hnsw_build_seconds"] = time.perf_counter() - start

    def search(effort):
        graph.hnsw.efSearch = effort
        return graph.search(queries, 10)[1]

    report["faiss_hnsw"] = graph_runs(search, truth, flags.queries, flags.repeats)
    try:
        from usearch.index import Index
    except ImportError:
        return report
    index = Index(ndim=flags.dimension, metric="ip", dtype="f32", connectivity=16, expansion_add=100)
    start = time.perf_counter()
    index.add(None, items, threads=flags.threads)
    report["usearch_build_seconds"] = time.perf_counter() - start

    def search_usearch(effort):
        index.expansion_search = effort
        return index.search(queries, 10, threads=flags.threads).keys

    report["usearch"] = graph_runs(search_usearch, truth, flags.queries, flags.repeats)
    return report


def main():
    flags = arguments()
    os.environ["OMP_NUM_THREADS"] = str(flags.threads)
    import numpy

    with tempfile.TemporaryDirectory() as folder:
        ours = [aeir(flags, folder, graphs=not flags.no_graphs)]
        items, queries = (numpy.load(pathlib.Path(folder) / f"{name}.npy") for name in ("items", "queries"))
        report = peers(flags, items, queries)
        ours.append(aeir(flags, folder, graphs=False))
    exact = {}
    for run in ours:
        for line in run["exact"]:
            exact.setdefault(line["storage"], []).append(line["seconds"])
    lines = [("search", "aeir / FAISS flat, time")]
    for storage, seconds in exact.items():
        report[f"aeir_{storage}_seconds"] = statistics.median(seconds)
        lines.append((f"exact {storage}", f"{statistics.median(seconds) / report['faiss_flat_seconds']:.2f}"))
    report["aeir"] = ours
    for graph in ours[0]["approximate"]:
        mine = at_recall(graph["runs"])
        for name in ("faiss_hnsw", "usearch"):
            other = at_recall(report.get(name, []))
            if mine and other:
                build = graph["build_seconds"] / report[f"{name}_build_seconds"]
                time_ratio = other["queries_per_second"] / mine["queries_per_second"]
                lines.append((f"graph {graph['storage']} beside {name}", f"{time_ratio:.2f} at recall {WANTED_RECALL}, build {build:.2f}"))
    print(json.dumps(report))
    for name, value in lines:
        print(f"{name:<36} {value}", file=sys.stderr)


if __name__ == "__main__":
    main()
