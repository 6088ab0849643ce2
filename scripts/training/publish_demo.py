"""Put a trained demo into the package: its bf16 weights and, coded by us, PQ5.

python scripts/training/publish_demo.py build/demo/final
"""

import argparse
import shutil
from pathlib import Path

from hlwq_mlx.library import DEMO, DEMO_VARIANT
from hlwq_mlx.quantize import PUBLISHED, TABLES, add_variant
from hlwq_mlx.source import rules
from hlwq_mlx.source.repository import Source
from hlwq_mlx.write.quantize import Encoder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("trained", type=Path, help="the folder `train_demo.py train` wrote")
    arguments = parser.parse_args()
    for path in arguments.trained.iterdir():
        shutil.copyfile(path, DEMO / path.name)
    name, rule = rules.variant_rule(DEMO_VARIANT)
    shutil.rmtree(DEMO / name, ignore_errors=True)
    encoder = Encoder(TABLES[PUBLISHED])
    for line in add_variant(Source(DEMO), rule, DEMO / name, encoder).lines():
        print(line)


if __name__ == "__main__":
    main()
