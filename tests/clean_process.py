# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Programs in a fresh Python process, which has this package or cannot import it, as on another machine."""

import json

from warm_python import run_python


# Arguments: a saved folder, a file of rows, "with" or "without" the package. What comes after may fill `report`.
START = """
import json, sys


class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "modeling_aoarm":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


folder, package, report = sys.argv[1], sys.argv[3], {}
if package == "without":
    sys.meta_path.insert(0, Refuse())
else:
    import modeling_aoarm
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

rows = torch.load(sys.argv[2])
inputs = {name: rows[name] for name in ("input_ids", "position_ids", "target_position_ids")}
trust = {"trust_remote_code": True} if package == "without" else {}
"""

LOAD_AND_FILL = """
AutoConfig.from_pretrained(folder, **trust)
model = AutoModelForCausalLM.from_pretrained(folder, **trust)
body = AutoModel.from_pretrained(folder, **trust)
with torch.no_grad():
    logits = model(**inputs).logits
    report["same_body"] = torch.equal(model.lm_head(body(**inputs).last_hidden_state), logits)
filled = []
for way in rows["ways"]:
    torch.manual_seed(3)
    filled.append(model.generate(rows["input_ids"], generation_mask=rows["generation_mask"], **way))
torch.save({"logits": logits, "filled": filled}, sys.argv[2] + ".out")
report["module"] = type(model).__module__
"""

# A question that nobody answers leaves its line open.
FINISH = """
print()
print(json.dumps(report))
"""


def run_clean_process(folder, rows, package, program=LOAD_AND_FILL, from_scratch=False, **variables):
    """Runs a program beside the file of rows, `"with"` the package or `"without"`; returns its `report`.

    Nobody answers its questions, and it finds no code that other processes have loaded. It is offline, unless
    environment variables say where its Hub is. See `run_python` for `from_scratch`.
    """
    command = ("-c", START + program + FINISH, folder, rows, package)
    process = run_python(*command, cwd=rows.parent, from_scratch=from_scratch or bool(variables), **variables)
    assert process.returncode == 0, process.stderr
    return {**json.loads(process.stdout.splitlines()[-1]), "stderr": process.stderr}
