"""tpu_vm.sh and worker.sh together: two folders are the workers, and what would go over ssh is run in them."""

import os
import pathlib
import subprocess

import pytest

from tests.helpers import ROOT

OPTIONS = ["--config", "my file.yaml", "--x", "a\"b'$HOME;"]

GCLOUD = """#!/usr/bin/env bash
# Called as: gcloud compute tpus tpu-vm VERB ...
code=0
case "$4" in
  describe) echo READY ;;
  scp) for worker in w0 w1; do cp "$5" "$WORKERS/$worker/${6#*:}"; done ;;
  ssh)
    for worker in w0 w1; do
      (cd "$WORKERS/$worker" && HOME="$PWD" bash -c "${@: -1}") || code=$?
    done
    ;;
  *) code=64 ;;
esac
exit "$code"
"""

# The run is stopped the first time, with its state saved, and finishes the second time.
FLAXBERT = """#!/usr/bin/env bash
printf '<%s>' "$@" "$FLAXBERT_JOIN" "$A" >>~/runs
echo >>~/runs
[[ "$(wc -l <~/runs)" == 2 ]] || exit 143
"""

PYTHON = f"""#!/usr/bin/env bash
# Stands in for pip and uv: the environment holds a stand-in for flaxbert.
if [[ "$*" == *"uv venv"* ]]; then
  mkdir -p .venv/bin && ln -s "$(command -v true)" .venv/bin/python
  cat >.venv/bin/flaxbert <<'END'
{FLAXBERT}END
  chmod +x .venv/bin/flaxbert
fi
"""


@pytest.mark.slow
def test_a_run_is_installed_started_and_resumed_on_both_workers(tmp_path: pathlib.Path) -> None:
    for name, text in (("gcloud", GCLOUD), ("python3", PYTHON)):
        (tmp_path / name).write_text(text, encoding="utf-8")
        (tmp_path / name).chmod(0o755)
    for worker in ("w0", "w1"):
        (tmp_path / worker).mkdir()
    environment = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "WORKERS": str(tmp_path)}
    where = ["--name", "v5", "--zone", "us-east5-a", "--type", "v5litepod-16", "--poll-seconds", "1"]
    script = str(ROOT / "tpu_scripts" / "tpu_vm.sh")
    result = subprocess.run(
        [script, "resume", *where, "--env", "A=b c", "--", "pretrain", *OPTIONS],
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "restart 1 of at most 20" in result.stderr
    line = "".join(f"<{word}>" for word in ["pretrain", "--config", "my file.yaml", "--x", "a\"b'$HOME;", "1", "b c"])
    for worker in ("w0", "w1"):
        assert (tmp_path / worker / "runs").read_text(encoding="utf-8").splitlines() == [line, line]
        log = (tmp_path / worker / "flaxbert" / ".run" / "log").read_text(encoding="utf-8")
        assert "ended with exit code 143" in log
        assert log.splitlines()[-1].endswith("ended with exit code 0")
