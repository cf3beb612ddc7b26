"""JPEG decoding and resizing in Pillow and OpenCV, beside `aeir bench data`, on the same files.

    python decode.py --aeir ../../target/release/aeir --threads 1,2

The files are made by aeir, and everything runs in turn (aeir, Pillow, Pillow with draft, OpenCV, and again): the ratios are of
medians of that one run. Reading the file counts, on all sides; the files are in the system's cache. Pillow's and OpenCV's calls
release Python's lock, so that threads are threads. All of it runs in threads of a pool, one thread as well: on the main thread the C
library gives the memory of each picture back to the system, which costs Pillow as much as decoding it.

Pillow: `Image.open(f).convert("RGB").resize((224, 224), BICUBIC)`. From the same decoded pixels our preprocessing gives these bytes:
those of Pillow 12, which version 13 has as well for pictures of this shape (of narrow and tall ones it does the columns first, and
other bytes come out). With draft: the same after `draft("RGB", (224, 224))`, which lets the decoder leave out what a smaller picture
doesn't need; of 500x375 pixels nothing can be left out, as half of 375 is below 224. OpenCV: `imread`, `resize` with INTER_AREA, BGR to RGB: other pixels, for whom they will do.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor

SIDE = 224


def pillow_decode(path):
    from PIL import Image

    return Image.open(path).convert("RGB")


def pillow(path):
    from PIL import Image

    return pillow_decode(path).resize((SIDE, SIDE), Image.Resampling.BICUBIC)


def pillow_draft(path):
    from PIL import Image

    image = Image.open(path)
    image.draft("RGB", (SIDE, SIDE))
    return image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC)


def opencv_decode(path):
    import cv2

    return cv2.imread(path)


def opencv(path):
    import cv2

    small = cv2.resize(cv2.imread(path), (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    return cv2.cvtColor(small, cv2.COLOR_BGR2RGB)


def run(function, files):
    for path in files:
        function(path)


def rate(function, files, threads):
    with ThreadPoolExecutor(threads) as pool:
        start = time.perf_counter()
        # In large pieces, so that handing out work costs nothing.
        list(pool.map(lambda part: run(function, part), [files[i::threads] for i in range(threads)]))
        return len(files) / (time.perf_counter() - start)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--aeir", required=True, help="the program, built with --release")
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()

    peers = {"Pillow": (pillow_decode, pillow), "Pillow, draft": (None, pillow_draft)}
    try:
        import cv2

        cv2.setNumThreads(1)
        peers["OpenCV"] = (opencv_decode, opencv)
    except ImportError:
        print("no OpenCV: left out", file=sys.stderr)

    with tempfile.TemporaryDirectory() as folder:
        ours = [args.aeir, "bench", "data", "--folder", folder, "--images", str(args.images)]
        subprocess.run([*ours, "--make-only"], check=True, stdout=subprocess.DEVNULL)
        files = sorted(os.path.join(folder, name) for name in os.listdir(folder))
        result = {"images": len(files), "bytes_per_image": sum(map(os.path.getsize, files)) // len(files), "threads": {}}
        for threads in map(int, args.threads.split(",")):
            rates = {}
            for _ in range(args.repeats):
                ours_run = subprocess.run(
                    [*ours, "--threads", str(threads), "--repeats", "1", "--json"], check=True, capture_output=True
                )
                told = json.loads(ours_run.stdout)["results"][0]
                rates.setdefault("aeir", ([], []))[0].append(told["decoded_per_second"])
                rates["aeir"][1].append(told["decoded_and_resized_per_second"])
                for name, functions in peers.items():
                    for function, into in zip(functions, rates.setdefault(name, ([], []))):
                        if function is not None:
                            function(files[0])
                            into.append(rate(function, files, threads))
            medians = {
                name: [statistics.median(values) if values else None for values in both] for name, both in rates.items()
            }
            base = medians["Pillow"]
            result["threads"][threads] = {
                name: {
                    "decoded": decoded and round(decoded / base[0], 2),
                    "decoded_and_resized": round(both / base[1], 2),
                }
                for name, (decoded, both) in medians.items()
            }
            print(f"{threads} thread{'s' if threads > 1 else ''}: rate, Pillow's being 1", file=sys.stderr)
            for name, ratios in result["threads"][threads].items():
                print(f"  {name:14} decoded {ratios['decoded'] or '-':>5}  decoded and resized {ratios['decoded_and_resized']:>5}", file=sys.stderr)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
