"""An application as data: stages, dependencies, bounded loops, dynamic stages, validated when built.

A definition is a JSON-like mapping (YAML files under `apps/`, `PUT /v1/applications/{name}`); `docs/templates.md` is
the reference of all its keys:

```yaml
name: code_generation
stages:
  - {name: test_gen, kind: llm}
  - {name: code_gen_0, kind: llm, after: [test_gen]}
  - {name: code_exec_0, kind: regular, handler: python_exec, after: [code_gen_0]}
  - loop: repair                     # padded into a chain: reflect_1, code_gen_1, …, code_exec_4
    first: 1
    max_iterations: 4
    after: [code_exec_0]
    while: "not last.passed"         # asked before each iteration; no: the rest of the chain is skipped
    continues: [0.8, 0.9, 0.9]       # chance that iteration 2, 3, … follows the one before it; one number: always this
    stages:
      - {name: reflect, kind: llm}
      - {name: code_gen, kind: llm, after: [reflect]}
      - {name: code_exec, kind: regular, handler: python_exec, after: [code_gen]}
```

`Application.stages` is the padded DAG in topological order: what schedulers and profilers see. Whether a padded stage
really runs is learned while the job runs: a stage is *skipped* when its condition says so, or when all of its
parents were skipped. A dynamic stage is a placeholder: when its planner finishes, stages named after candidates
take its place; it is done when they are. `after: [repair]` waits for a whole loop, however many iterations it takes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast

from llmsched.errors import UnknownName
from llmsched.model.definition import read_definition
from llmsched.model.spec import Curve, StageSpec, validated_stages


@dataclass(frozen=True, slots=True)
class Application:
    """A named, validated template; build it with `Application.parse`."""

    name: str
    stages: tuple[StageSpec, ...]
    version: int = 1
    description: str = ""
    result: str | None = None
    input_schema: Mapping[str, object] | None = None
    definition: Mapping[str, object] = field(default_factory=dict, repr=False, compare=False)
    _by_name: Mapping[str, StageSpec] = field(init=False, repr=False, compare=False)
    _children: Mapping[str, tuple[str, ...]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        ordered = validated_stages(self.name, self.stages)
        object.__setattr__(self, "stages", ordered)
        object.__setattr__(self, "_by_name", {s.name: s for s in ordered})
        children: dict[str, list[str]] = {s.name: [] for s in ordered}
        for s in ordered:
            for parent in s.after:
                children[parent].append(s.name)
        object.__setattr__(self, "_children", {k: tuple(v) for k, v in children.items()})

    @classmethod
    def parse(cls, definition: object, *, version: int = 1) -> Application:
        """The application a JSON-like definition describes.

        Raises InvalidApplication with one sentence that names the stage and the way out.
        """
        read = read_definition(definition)
        return cls(**read._asdict(), version=version, definition=cast(Mapping[str, object], definition))

    def __contains__(self, stage: object) -> bool:
        return stage in self._by_name

    def __getitem__(self, stage: str) -> StageSpec:
        try:
            return self._by_name[stage]
        except KeyError:
            raise UnknownName.of("stage", stage, self._by_name) from None

    def children(self, stage: str) -> tuple[str, ...]:
        """Names of the stages that wait for `stage`, in topological order; empty for an unknown one."""
        return self._children.get(stage, ())

    @property
    def digest(self) -> str:
        """Twelve hex digits that change whenever the definition does."""
        text = json.dumps(self.definition, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @property
    def is_executable(self) -> bool:
        """Whether jobs can run on an input; otherwise only recordings can be submitted."""
        return all(s.is_executable for s in self.stages)

    def expected_work(self, curve: Curve) -> float:
        """Declared mean reference work of a job in seconds (all pools); 0 where nothing is declared."""
        return sum(s.expected.work(s.kind, curve) for s in self.stages)
