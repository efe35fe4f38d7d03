"""How long the answers of LLM calls will be, said when they become ready: a ranker and a regressor.

```
task ──features.py──▶ a row of numbers ──trees.py──▶ score (larger: shorter), tokens ──Predictions──▶ policies
```

Models are trained by `llmsched.training.ranker` and read here with numpy alone.
"""

from llmsched.profiler.lengths.features import Features, template_stage
from llmsched.profiler.lengths.predictor import Lengths, Model, Predictions, default_lengths
from llmsched.profiler.lengths.trees import Trees

__all__ = ["Features", "Lengths", "Model", "Predictions", "Trees", "default_lengths", "template_stage"]
