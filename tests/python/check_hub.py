"""Uses a hub's cache with Python's huggingface_hub; run by hub.test.ts.

    check_hub.py use    what another program left in the cache is whole, offline and online
    check_hub.py write  downloads into the cache, for another program to use

HF_ENDPOINT and HF_HUB_CACHE say where. Prints one JSON object.
"""

import json
import os
import sys
import warnings

os.environ["HF_HUB_DISABLE_XET"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

from huggingface_hub import hf_hub_download, scan_cache_dir, snapshot_download  # noqa: E402

REPO = "acme/tiny"


def content(folder):
    """Bytes of every file below a folder by relative path, as hex of their hash."""
    import hashlib

    found = {}
    for root, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(root, name)
            with open(path, "rb") as file:
                found[os.path.relpath(path, folder)] = hashlib.sha256(file.read()).hexdigest()
    return found


def main(mode):
    warnings.simplefilter("error")
    result = {}
    if mode == "use":
        result["offline"] = snapshot_download(REPO, local_files_only=True)
        result["file"] = hf_hub_download(REPO, "config.json", local_files_only=True)
        scan = scan_cache_dir()
        result["warnings"] = [str(warning) for warning in scan.warnings]
        result["repos"] = [repo.repo_id for repo in scan.repos]
    result["online"] = snapshot_download(REPO)
    result["dataset"] = snapshot_download(REPO, repo_type="dataset")
    result["content"] = content(result["online"])
    print(json.dumps(result))


main(sys.argv[1])
