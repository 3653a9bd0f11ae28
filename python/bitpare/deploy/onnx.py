"""Export integer models to ONNX, as float operations between QuantizeLinear and DequantizeLinear,
which runtimes fuse."""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from bitpare.deploy.files import whole_program
from bitpare.errors import Unsupported
from bitpare.files import Path, write_whole

OPSET = 18  # the lowest opset with all operations in use
INT4_OPSET = 21  # the first opset with 4-bit integers and block scales
RUNTIMES = ("onnxruntime", "tensorrt")
IR_VERSIONS = {True: 10, False: 9}  # the IR version for each: with int4, without


def export_onnx(
    model: nn.Module,
    path: Path,
    *,
    example_inputs: tuple[Any, ...] | Tensor,
    opset: int = OPSET,
    runtime: Literal["onnxruntime", "tensorrt"] = "onnxruntime",
) -> None:
    """Write a converted model to an ONNX file.

    The batch size may vary; the other sizes are those of the example inputs. Weights are int8.
    Biases are int32. Activations are uint8, or int8 if all their zero points are 0 (the grid of
    target="tensorrt"). Activations such as SiLU become table lookups (Cast and Gather). Models
    with dynamic ranges cannot be exported. The onnx package is needed.

    Args:
        model: a converted model, with every operation in integers.
        path: the file to write.
        example_inputs: the positional arguments of a call, or a single tensor.
        opset: 18 or more. From 21 on, weights that fit in 4 bits are int4.
        runtime: the runtime that will read the file, "onnxruntime" or "tensorrt". For TensorRT
            biases are floats, and clamps come before rounding.
    """
    if runtime not in RUNTIMES:
        raise ValueError(
            f"export_onnx: runtime must be one of {', '.join(RUNTIMES)}, got {runtime!r}"
        )
    if opset < OPSET:
        raise ValueError(f"export_onnx: opset must be {OPSET} or more, got {opset}")
    program, _ = whole_program(model, "export_onnx")
    inputs = (example_inputs,) if isinstance(example_inputs, Tensor) else tuple(example_inputs)
    if len(inputs) != len(program.spec["inputs"]):
        raise ValueError(
            f"export_onnx: example_inputs must have {len(program.spec['inputs'])} tensors, "
            f"got {len(inputs)}"
        )
    results = program(*inputs)
    graph = _Graph(program.spec, dict(program.named_buffers()), opset, runtime)
    made = graph.build(inputs, results)
    write_whole(path, made.SerializeToString())


class _Graph:
    """An ONNX graph while it is built. Values are codes or floats, with shape [batch, channels,
    height, width], or [rows, channels] if the channels come last."""

    def __init__(
        self, spec: dict[str, Any], tensors: dict[str, Tensor], opset: int, runtime: str
    ) -> None:
        self.opset, self.tensorrt = opset, runtime == "tensorrt"
        from onnx import TensorProto, helper, numpy_helper

        self.helper, self.numpy, self.types = helper, numpy_helper, TensorProto
        self.spec, self.tensors = spec, tensors
        self.nodes: list[Any] = []
        self.constants: dict[str, Any] = {}
        self.codes: dict[int, str] = {}  # value -> name
        self.scales: dict[int, float] = {}
        self.zeros: dict[int, int] = {}
        zeros = {e["range"][2] for e in (*spec["inputs"], *spec["nodes"]) if "range" in e}
        self.down = 128 if zeros == {128} else 0  # codes are stored as bytes minus this

    # -- pieces

    def constant(self, name: str, value: Tensor) -> str:
        if name not in self.constants:
            self.constants[name] = self.numpy.from_array(value.detach().cpu().numpy(), name)
        return name

    def node(self, op: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(self.helper.make_node(op, inputs, [output], name=output, **attributes))
        return output

    def code_type(self) -> torch.dtype:
        return torch.int8 if self.down else torch.uint8

    def grid(self, name: str, scale: float, zero: int) -> list[str]:
        return [
            self.constant(f"{name}.scale", torch.tensor(scale)),
            self.constant(f"{name}.zero", torch.tensor(zero - self.down, dtype=self.code_type())),
        ]

    def floats(self, value: int, reader: str) -> str:
        """Return a value as float for one reader. Each reader gets its own node, which fusions
        require."""
        name = self.codes[value]
        grid = self.grid(name, self.scales[value], self.zeros[value])
        output = f"{name}.for.{reader}"
        while any(output in n.output for n in self.nodes):
            output += "_"
        return self.node("DequantizeLinear", [name, *grid], output)

    def quantized(self, source: str, name: str, scale: float, bounds: list[int]) -> str:
        """Quantize a float value, clamped to the bounds."""
        low, high, zero = bounds[0] + bounds[2], bounds[1] + bounds[2], bounds[2]
        whole = (low, high) == (0, 255)
        if self.tensorrt and not whole:
            limits = [
                self.constant(f"{name}.{which}", torch.tensor(at * scale))
                for which, at in (("least", bounds[0]), ("most", bounds[1]))
            ]
            source = self.node("Clip", [source, *limits], f"{name}.bounded")
            whole = True
        first = name if whole else f"{name}.whole"
        self.node("QuantizeLinear", [source, *self.grid(name, scale, zero)], first)
        if whole:
            return first
        limits = [
            self.constant(f"{name}.{which}", torch.tensor(at - self.down, dtype=self.code_type()))
            for which, at in (("least", low), ("most", high))
        ]
        return self.node("Clip", [first, *limits], name)

    def keep(self, value: int, name: str, scale: float, zero: int) -> None:
        self.codes[value], self.scales[value], self.zeros[value] = name, scale, zero

    # -- operations

    def build(self, inputs: tuple[Any, ...], results: list[Tensor]) -> Any:
        given, returned = [], []
        for i, (entry, x) in enumerate(zip(self.spec["inputs"], inputs, strict=True)):
            name = f"input{i}"
            sizes = ["batch", *x.shape[1:]]
            given.append(self.helper.make_tensor_value_info(name, self.types.FLOAT, sizes))
            if entry.get("floats"):
                self.codes[entry["value"]] = self._as_rows(name, entry, x)
                continue
            made = self.quantized(name, f"{name}.codes", entry["scale"], entry["range"])
            made = self._as_rows(made, entry, x)
            self.keep(entry["value"], made, entry["scale"], entry["range"][2])
        for node in self.spec["nodes"]:
            if node["op"] == "dynamic":
                raise Unsupported(f"export_onnx: {node['name']}: dynamic ranges have no QDQ form")
            getattr(self, node["op"])(node)
        for i, (entry, y) in enumerate(zip(self.spec["outputs"], results, strict=True)):
            name, value = f"output{i}", entry["value"]
            source = self.codes[value] if entry["floats"] else self.floats(value, name)
            if entry["rows"] and y.dim() > 2:
                shape = self.constant(f"{name}.shape", torch.tensor([-1, *y.shape[1:]]))
                self.node("Reshape", [source, shape], name)
            elif entry["rows"]:
                self.node("Flatten", [source], name, axis=1)
            else:
                self.node("Identity", [source], name)
            sizes = ["batch", *y.shape[1:]]
            returned.append(self.helper.make_tensor_value_info(name, self.types.FLOAT, sizes))
        graph = self.helper.make_graph(
            self.nodes, "bitpare", given, returned, list(self.constants.values())
        )
        opsets = [self.helper.make_opsetid("", self.opset)]
        version = IR_VERSIONS[self.opset >= INT4_OPSET]
        return self.helper.make_model(
            graph, opset_imports=opsets, ir_version=version, producer_name="bitpare"
        )

    def _as_rows(self, name: str, entry: dict[str, Any], x: Tensor) -> str:
        if not entry["rows"] or x.dim() == 2:
            return name
        return self.node("Flatten", [name], f"{name}.rows", axis=x.dim() - 1)

    def conv(self, node: dict[str, Any]) -> None:
        name, entering = node["name"], node["inputs"][0]
        add = node.get("add")
        scale = add["scales"][0] if add else node.get("scale_of_output", 1.0)
        weight, bias, unit = self._weights(node, None if node["float"] else scale)
        scale_of_weight = unit / self.scales[entering]
        weights = self._dequantized(name, weight, scale_of_weight.float(), None, {"axis": 0})
        biases = self._biases(name, bias, unit)
        result = f"{name}.result"
        if node.get("linear", False):
            rows = self.node("Flatten", [self.codes[entering]], f"{name}.rows", axis=1)
            grid = self.grid(self.codes[entering], self.scales[entering], self.zeros[entering])
            x = self.node("DequantizeLinear", [rows, *grid], f"{name}.input")
            self.node("Gemm", [x, weights, biases], result, transB=1)
        else:
            x = self.floats(entering, name)
            window = self._window(node)
            self.node("Conv", [x, weights, biases], result, group=node["groups"], **window)
        value = node["output"]
        if node["float"]:
            self.codes[value] = self._bounded(result, node)
            return
        if add is None:
            self.keep(value, self.quantized(result, name, scale, node["range"]), scale,
                      node["range"][2])  # fmt: skip
            return
        first = f"{name}.alone"
        self.quantized(result, first, scale, node["range"])
        grid = self.grid(first, scale, node["range"][2])
        a = self.node("DequantizeLinear", [first, *grid], f"{first}.for.sum")
        b = self.floats(node["inputs"][1], name)
        total = self.node("Add", [a, b], f"{name}.sum")
        whole = node["scale_of_output"]
        self.keep(value, self.quantized(total, name, whole, add["range"]), whole, add["range"][2])

    def _weights(self, node: dict[str, Any], scale: float | None) -> tuple[Tensor, Tensor, Tensor]:
        """Return weight codes, biases and the value of one accumulator unit. ONNX needs positive
        scales, so negative factors are moved into the codes."""
        multiplier = self.tensors[node["multiplier"]].double().cpu()
        weight = self.tensors[node["weight"]].short().cpu()
        bias = self.tensors[node["bias"]].cpu()
        sign = torch.where(multiplier < 0, -1, 1)
        weight = (weight * sign.view(-1, 1, 1, 1)).clamp(-128, 127).to(torch.int8)
        if node.get("linear", False):
            weight = weight.flatten(1)
        unit = multiplier.abs() * (1.0 if scale is None else scale)
        return weight.contiguous(), (bias * sign).to(torch.int32), unit

    def _dequantized(
        self, name: str, codes: Tensor, scale: Tensor, zeros: Tensor | None, how: dict[str, Any]
    ) -> str:
        """Return weights as floats, dequantized from int8 codes, or from int4 if opset and codes
        allow."""
        codes = codes.cpu()
        shift = _shift_to_4_bits(codes) if self.opset >= INT4_OPSET and zeros is None else None
        zeros = torch.zeros(scale.shape, dtype=torch.int8) if zeros is None else zeros.cpu()
        if shift is None:
            held = self.constant(f"{name}.codes", codes)
            zero = self.constant(f"{name}.weight_zero", zeros.to(torch.int8))
        else:
            scale = scale * 2.0**shift
            held, zero = (
                self._int4(f"{name}.{what}", t)
                for what, t in (("codes", codes >> shift), ("weight_zero", zeros))
            )
        scales = self.constant(f"{name}.weight_scale", scale)
        return self.node("DequantizeLinear", [held, scales, zero], f"{name}.weight", **how)

    def _biases(self, name: str, bias: Tensor, unit: Tensor) -> str:
        if self.tensorrt:
            return self.constant(f"{name}.bias", (bias * unit).float())
        given = [
            self.constant(f"{name}.bias_codes", bias),
            self.constant(f"{name}.bias_scale", unit.float()),
            self.constant(f"{name}.bias_zero", torch.zeros(len(unit), dtype=torch.int32)),
        ]
        return self.node("DequantizeLinear", given, f"{name}.bias", axis=0)

    def _int4(self, name: str, codes: Tensor) -> str:
        if name not in self.constants:
            flat = codes.flatten().tolist()
            shape = list(codes.shape)
            self.constants[name] = self.helper.make_tensor(name, self.types.INT4, shape, flat)
        return name

    def _bounded(self, value: str, node: dict[str, Any]) -> str:
        bounds = node.get("bounds") or [None, None]
        if bounds == [None, None]:
            return value
        limits = [
            "" if at is None else self.constant(f"{value}.{which}", torch.tensor(float(at)))
            for which, at in zip(("lowest", "highest"), bounds, strict=True)
        ]
        return self.node("Clip", [value, *limits], f"{value}.bounded")

    def weights(self, node: dict[str, Any]) -> None:
        """Add a linear layer with float activations."""
        name = node["name"]
        codes, scale = self.tensors[node["weight"]], self.tensors[node["multiplier"]]
        zeros = self.tensors[node["zeros"]] if node.get("zeros") else None
        outputs, groups = scale.shape
        if groups == 1:
            flat = None if zeros is None else zeros.flatten()
            weight = self._dequantized(name, codes, scale.flatten(), flat, {"axis": 0})
        elif self.opset >= INT4_OPSET:
            how = {"axis": 1, "block_size": node["group"]}
            weight = self._dequantized(name, codes, scale, zeros, how)
        else:  # each group becomes a row
            flat = None if zeros is None else zeros.flatten()
            in_rows = codes.view(outputs * groups, -1)
            rows = self._dequantized(name, in_rows, scale.flatten(), flat, {"axis": 0})
            shape = self.constant(f"{name}.shape", torch.tensor(codes.shape))
            weight = self.node("Reshape", [rows, shape], f"{name}.whole")
        inputs = [self.codes[node["inputs"][0]], weight]
        if node.get("offset"):
            inputs.append(self.constant(f"{name}.offset", self.tensors[node["offset"]]))
        result = self.node("Gemm", inputs, f"{name}.result", transB=1)
        self.codes[node["output"]] = self._bounded(result, node)

    def _window(self, node: dict[str, Any]) -> dict[str, Any]:
        return {
            "kernel_shape": node["kernel"],
            "strides": node["stride"],
            "pads": node["padding"],
            "dilations": node["dilation"],
        }

    def pool(self, node: dict[str, Any]) -> None:
        name, entering, value = node["name"], node["inputs"][0], node["output"]
        if node["adaptive"] and node["size"] != [1, 1]:
            raise Unsupported(f"export_onnx: {name}: adaptive pooling to {node['size']}")
        if node["maximum"] and not node["adaptive"]:
            window = {**self._window(node), "ceil_mode": int(node["ceil"])}
            self.node("MaxPool", [self.codes[entering]], name, **window)
            self.keep(value, name, self.scales[entering], self.zeros[entering])
            return
        x, result = self.floats(entering, name), f"{name}.result"
        if node["adaptive"]:
            self.node("GlobalMaxPool" if node["maximum"] else "GlobalAveragePool", [x], result)
        else:
            if node["divisor"]:
                raise Unsupported(f"export_onnx: {name}: pooling with divisor_override")
            window = self._window(node)
            del window["dilations"]
            self.node(
                "AveragePool", [x], result, **window, ceil_mode=int(node["ceil"]),
                count_include_pad=int(node["count_padding"]),
            )  # fmt: skip
        scale = self.scales[entering] if node["maximum"] else node["new_scale"]
        zero = self.zeros[entering]
        bounds = [-zero, 255 - zero, zero] if node["maximum"] else node["range"]
        self.keep(value, self.quantized(result, name, scale, bounds), scale, bounds[2])

    def quantize(self, node: dict[str, Any]) -> None:
        name, scale, bounds = node["name"], node["scale"], node["range"]
        made = self.quantized(self.codes[node["inputs"][0]], f"{name}.codes", scale, bounds)
        self.keep(node["output"], made, scale, bounds[2])

    def pair(self, node: dict[str, Any]) -> None:
        name = node["name"]
        a, b = (self.floats(v, f"{name}.{i}") for i, v in enumerate(node["inputs"]))
        result = self.node("Mul" if node["product"] else "Add", [a, b], f"{name}.result")
        scale, bounds = node["scale_of_output"], node["range"]
        self.keep(node["output"], self.quantized(result, name, scale, bounds), scale, bounds[2])

    def map(self, node: dict[str, Any]) -> None:
        name, entering = node["name"], node["inputs"][0]
        scale = node["scale_of_output"]
        if node["tables"]:
            made = self._looked_up(self.codes[entering], name, node["tables"][0])
            self.keep(node["output"], made, scale, node["zero_of_output"])
            return
        shape = (1, -1, 1, 1)
        factor = self.tensors[node["multiplier"]].double() * scale / self.scales[entering]
        offset = self.tensors[node["offset"]].double() * scale
        x = self.floats(entering, name)
        scaled = self.node(
            "Mul", [x, self.constant(f"{name}.factor", factor.float().view(shape))],
            f"{name}.scaled",
        )  # fmt: skip
        result = self.node(
            "Add", [scaled, self.constant(f"{name}.shift", offset.float().view(shape))],
            f"{name}.result",
        )  # fmt: skip
        bounds = node["range"]
        self.keep(node["output"], self.quantized(result, name, scale, bounds), scale, bounds[2])

    def _looked_up(self, source: str, name: str, table: str) -> str:
        index = self.node("Cast", [source], f"{name}.index", to=self.types.INT32)
        if self.down:
            by = self.constant("up", torch.tensor(self.down, dtype=torch.int32))
            index = self.node("Add", [index, by], f"{name}.byte")
        codes = (self.tensors[table].short() - self.down).to(self.code_type())
        return self.node("Gather", [self.constant(f"{table}.codes", codes), index], name)

    def concat(self, node: dict[str, Any]) -> None:
        name = node["name"]
        parts = []
        for i, (value, table) in enumerate(zip(node["inputs"], node["tables"], strict=True)):
            source = self.codes[value]
            parts.append(source if table is None else self._looked_up(source, f"{name}.{i}", table))
        self.node("Concat", parts, name, axis=1)
        self.keep(node["output"], name, node["scale_of_output"], node["zero_of_output"])


def _shift_to_4_bits(codes: Tensor) -> int | None:
    """Return by how many bits codes can be shifted right without loss to fit in 4 bits, or None."""
    for shift in range(5):
        kept = codes >> shift
        if bool((kept << shift != codes).any()):
            return None
        if bool((kept >= -8).all() and (kept <= 7).all()):
            return shift
    return None
