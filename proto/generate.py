"""Writes the Python stubs of every file under proto/ into a folder (`make proto` names election/pb).

protoc's Python output imports by the proto path (`from etcd import kv_pb2`), which is not where the
modules live; and it puts everything into protobuf's default pool, where etcd's names would collide with
those of any other etcd client in the same process. Both are mended here and nowhere else.
"""

import re
import sys
from importlib import resources
from pathlib import Path

from grpc_tools import protoc

PROTO = Path(__file__).parent
PACKAGE = "election.pb"


def main(out: Path) -> None:
    """Generates into `out`, which must exist; raises SystemExit when protoc refuses a file."""
    etcd = sorted(str(file.relative_to(PROTO)) for file in PROTO.glob("etcd/*.proto"))
    ours = sorted(str(file.relative_to(PROTO)) for file in PROTO.glob("election/**/*.proto"))
    includes = [f"-I{PROTO}", f"-I{resources.files('grpc_tools') / '_proto'}"]
    scripts = Path(sys.executable).parent  # protoc looks for its plugins on PATH, where a virtualenv may not be
    includes += [f"--plugin={scripts / name}" for name in ("protoc-gen-mypy", "protoc-gen-mypy_grpc")]
    messages = [f"--python_out={out}", f"--mypy_out=quiet:{out}"]
    services = [f"--grpc_python_out={out}", f"--mypy_grpc_out=quiet:{out}"]
    for arguments in ([*messages, *etcd], [*messages, *services, *ours]):
        if protoc.main(["protoc", *includes, *arguments]) != 0:
            raise SystemExit(1)
    for file in [*out.rglob("*_pb2*.py"), *out.rglob("*_pb2*.pyi")]:
        text = file.read_text()
        text = re.sub(r"^(from|import) (etcd|election)\.", rf"\1 {PACKAGE}.\2.", text, flags=re.MULTILINE)
        text = re.sub(r"^from (etcd) import", rf"from {PACKAGE}.\1 import", text, flags=re.MULTILINE)
        text = re.sub(r"(?<![\w.])(etcd|election\.v1)\.(\w+_pb2)\b", rf"{PACKAGE}.\1.\2", text)
        if file.parent.name == "etcd":
            text = text.replace("_descriptor_pool.Default()", "_ETCD_POOL")
            text = text.replace(
                "from google.protobuf import descriptor_pool as _descriptor_pool",
                f"from {PACKAGE}.pool import ETCD as _ETCD_POOL, build as _build",
            )
            text = text.replace("_builder.BuildTopDescriptorsAndMessages(", "_build(")
        file.write_text(text)
    for folder in {file.parent for file in out.rglob("*_pb2.py")} | {out / "election"}:
        (folder / "__init__.py").touch()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
