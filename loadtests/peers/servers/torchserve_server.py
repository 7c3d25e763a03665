"""TorchServe: batches, a bounded queue, and a client's patience.

`batchSize` and `maxBatchDelay` (https://pytorch.org/serve/batch_inference_with_ts.html), the shortest window
there is. `jobQueueSize` answers 503 when it is full, and `clientTimeoutInMills` drops what has waited longer
than the promise leaves, without an answer (model-config.yaml in
https://github.com/pytorch/serve/blob/master/model-archiver/README.md). `responseTimeout` is in seconds and
ends the worker, so it is left as it is.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from loadtests.peers.config import PeerConfig

HANDLER = Path(__file__).with_name("torchserve_handler.py")


def settings(config: PeerConfig, folder: Path) -> str:
    """config.properties: addresses on this machine alone, each with a port that is free."""
    return f"""inference_address=http://127.0.0.1:{job.port}
management_address=http://127.0.0.1:{job.port + 1}
default_workers_per_model=1
metrics_address=http://127.0.0.1:{job.port + 2}
grpc_inference_port={job.port + 3}
grpc_management_port={job.port + 4}
disable_token_authorization=true
install_py_dep_per_model=false
model_store={folder}
load_models=vit.mar
"""


def model_settings(config: PeerConfig) -> str:
    """model-config.yaml; a batch that runs is not in the queue."""
    return f"""minWorkers: 1
maxWorkers: 1
batchSize: {job.batch}
maxBatchDelay: 1
jobQueueSize: {max(1, job.capacity - job.batch)}
clientTimeoutInMills: {int(job.patience_ms)}
"""


def run(config: PeerConfig, folder: Path) -> None:
    """Pack the handler and become the server."""
    (folder / "config.properties").write_text(settings(config, folder))
    (folder / "model-config.yaml").write_text(model_settings(config))
    tools = Path(sys.executable).parent
    subprocess.run(  # noqa: S603
        [tools / "torch-model-archiver", "--model-name", "vit", "--version", "1.0", "--handler", HANDLER,
         "--config-file", folder / "model-config.yaml", "--export-path", folder],
        check=True,
    )  # fmt: skip
    os.chdir(folder)  # it writes its logs where it starts, and unpacks where TEMP says
    os.environ["TEMP"] = str(folder)
    settings_file = str(folder / "config.properties")
    served = [str(tools / "torchserve"), "--start", "--foreground", "--ts-config", settings_file]
    os.environ["PATH"] = f"{tools}{os.pathsep}{os.environ['PATH']}"
    subprocess.run([*served, "--disable-token-auth"], check=False)  # noqa: S603


if __name__ == "__main__":
    if shutil.which("java") is None:
        raise SystemExit("TorchServe needs Java 17")
    with tempfile.TemporaryDirectory() as place:
        run(PeerConfig.read(), Path(place))
