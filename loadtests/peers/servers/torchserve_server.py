"""TorchServe: batches, a bounded queue, and a client timeout.

`batchSize` and `maxBatchDelay` (https://pytorch.org/serve/batch_inference_with_ts.html): the delay is set to
the shortest value. A full queue (`jobQueueSize`) answers 503. `clientTimeoutInMills` drops requests that have
waited longer than the deadline allows, without an answer (model-config.yaml in
https://github.com/pytorch/serve/blob/master/model-archiver/README.md). `responseTimeout` is in seconds and
stops the worker, so it keeps its default.
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
    """config.properties: loopback addresses, each with a free port."""
    return f"""inference_address=http://127.0.0.1:{config.port}
management_address=http://127.0.0.1:{config.port + 1}
default_workers_per_model=1
metrics_address=http://127.0.0.1:{config.port + 2}
grpc_inference_port={config.port + 3}
grpc_management_port={config.port + 4}
disable_token_authorization=true
install_py_dep_per_model=false
model_store={folder}
load_models=vit.mar
"""


def model_settings(config: PeerConfig) -> str:
    """model-config.yaml; a running batch is not in the queue."""
    return f"""minWorkers: 1
maxWorkers: 1
batchSize: {config.batch}
maxBatchDelay: 1
jobQueueSize: {max(1, config.capacity - config.batch)}
clientTimeoutInMills: {int(config.max_wait_ms)}
"""


def run(config: PeerConfig, folder: Path) -> None:
    """Pack the handler and run the server until it ends."""
    (folder / "config.properties").write_text(settings(config, folder))
    (folder / "model-config.yaml").write_text(model_settings(config))
    tools = Path(sys.executable).parent
    subprocess.run(  # noqa: S603
        [tools / "torch-model-archiver", "--model-name", "vit", "--version", "1.0", "--handler", HANDLER,
         "--config-file", folder / "model-config.yaml", "--export-path", folder],
        check=True,
    )  # fmt: skip
    os.chdir(folder)  # TorchServe writes logs to its working directory and unpacks to TEMP
    os.environ["TEMP"] = str(folder)
    settings_file = str(folder / "config.properties")
    command = [str(tools / "torchserve"), "--start", "--foreground", "--ts-config", settings_file]
    os.environ["PATH"] = f"{tools}{os.pathsep}{os.environ['PATH']}"
    subprocess.run([*command, "--disable-token-auth"], check=False)  # noqa: S603


if __name__ == "__main__":
    if shutil.which("java") is None:
        raise SystemExit("TorchServe needs Java 17")
    with tempfile.TemporaryDirectory() as folder:
        run(PeerConfig.read(), Path(folder))
