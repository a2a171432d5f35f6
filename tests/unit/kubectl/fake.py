"""A kubectl that notes how it is called and answers from files."""

from pathlib import Path
from typing import Any

import msgspec

SCRIPT = """\
#!/bin/sh
for word; do printf '%s\\n' "$word"; done >> "{folder}/calls"
echo . >> "{folder}/calls"
if [ -e "{folder}/stderr" ]; then cat "{folder}/stderr" >&2; exit 1; fi
case "$1 $2" in
  "get rerankers.rerank.dev") cat "{folder}/rerankers" ;;
  "get controllerrevisions.apps") cat "{folder}/revisions" ;;
  "create --filename=-") cat > "{folder}/created" ;;
  "annotate "*|"patch "*|"delete "*) ;;
  "port-forward "*)
    echo "Forwarding from 127.0.0.1:$(cat "{folder}/port") -> 8080"
    echo $$ > "{folder}/forwarding"
    exec sleep 60 ;;
  "logs "*)
    if [ -e "{folder}/logs.$2" ]; then exec cat "{folder}/logs.$2"; fi
    echo "Error from server (NotFound): pods \\"$2\\" not found" >&2; exit 1 ;;
  "get "*) cat "{folder}/$2" ;;
esac
"""


class FakeKubectl:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        script = folder / "kubectl"
        script.write_text(SCRIPT.format(folder=folder))
        script.chmod(0o755)

    def has(self, content: Any, revisions: list[Any] | None = None) -> None:
        self.answers("rerankers", content)
        self.answers("revisions", {"items": revisions or []})

    def answers(self, kind: str, content: Any) -> None:
        """Whatever is asked of that kind."""
        (self.folder / kind).write_bytes(msgspec.json.encode(content))

    def logs(self, pod: str, text: str) -> None:
        (self.folder / f"logs.{pod}").write_text(text)

    def forwards(self, port: int) -> None:
        """Every port-forward leads to that port of this machine."""
        (self.folder / "port").write_text(str(port))

    def does(self, verb: str, commands: str) -> None:
        """Calls of that verb run these commands of the shell and nothing else."""
        script = self.folder / "kubectl"
        script.write_text(
            script.read_text().replace('case "$1 $2" in', f'case "$1 $2" in\n  "{verb} "*) {commands} ;;')
        )

    def fails(self, stderr: str) -> None:
        (self.folder / "stderr").write_text(stderr)

    @property
    def calls(self) -> list[list[str]]:
        path = self.folder / "calls"
        return [call.splitlines() for call in path.read_text().split(".\n")[:-1]] if path.exists() else []

    @property
    def created(self) -> Any:
        return msgspec.json.decode((self.folder / "created").read_bytes())
