"""Classes whose every function ends the program, from TensorRT's header: ``python defaults.py NvInferImpl.h``."""

from __future__ import annotations

import re
import sys
from pathlib import Path

text = re.sub(r"//.*", "", Path(sys.argv[1]).read_text())
text = re.sub(r"#if ENABLE_.*?#endif", "", text, flags=re.S)
lines = ["// Made by defaults.py.", "#pragma once", "#include <cstdlib>", "using namespace nvinfer1;"]
for name, made in (
    ("VRuntime", "Runtime"), ("VCudaEngine", "Engine"), ("VExecutionContext", "Context"), ("VRefitter", "Refitter"),
):  # fmt: skip
    found = re.search(rf"class {name} : public VRoot\s*{{(.*?)\n}};", text, flags=re.S)
    assert found, name
    lines.append(f"struct {made}Defaults : apiv::{name} {{")
    for result, function, arguments, constant in re.findall(
        r"virtual\s+([^;()]*?)\s*(\w+)\(([^;]*?)\)\s*(const)?\s*noexcept\s*=\s*0;", found[1], flags=re.S
    ):
        kinds = ", ".join(re.sub(r"\s*\w+$", "", a) if " " in a.strip() else a for a in arguments.split(","))
        lines.append(f"  {result} {function}({kinds}) {constant} noexcept override {{ std::abort(); }}")
    lines.append("};")
sys.stdout.write("\n".join(lines) + "\n")
