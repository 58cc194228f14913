"""A metric that has its distance and no fast formula is right on every backend: CONTRIBUTING's recipe, in a copy."""

import sys

import pytest
import seeded_faults

from toast_kernels import backends

pytestmark = pytest.mark.skipif(backends._C is None, reason="the C++ kernels are not built")

CHEBYSHEV = {
    "toast_kernels/medoids/reference.py": [
        (")  # in the order of csrc/medoids.h", ', "chebyshev")  # in the order of csrc/medoids.h'),
        (
            '    if metric == "cityblock":\n',
            '    if metric == "chebyshev":\n        return torch.cdist(a, b, p=torch.inf)\n'
            '    if metric == "cityblock":\n',
        ),
    ],
    "csrc/medoids.h": [(" };\n\n// Any layout", ", chebyshev };\n\n// Any layout")],
    "csrc/cpu/medoids/costs.h": [
        (
            "    case Metric::jeffreys:\n",
            "    case Metric::chebyshev:\n      return f(std::integral_constant<Metric, Metric::chebyshev>{});\n"
            "    case Metric::jeffreys:\n",
        ),
        (
            "  if constexpr (metric == Metric::cityblock) {\n",
            "  if constexpr (metric == Metric::chebyshev) {\n"
            "    sum = max(sum, absolute(difference));\n"
            "  } else if constexpr (metric == Metric::cityblock) {\n",
        ),
        (
            "  const double total = add_lanes(sum);\n",
            "  if constexpr (metric == Metric::chebyshev) return largest_lane(sum);\n"
            "  const double total = add_lanes(sum);\n",
        ),
    ],
    "toast_kernels/medoids/triton_decide.py": [
        (
            'if METRIC == "cityblock":\n                    term = tl.abs(f - own_f)',
            'if METRIC == "cityblock" or METRIC == "chebyshev":\n                    term = tl.abs(f - own_f)',
        ),
        (
            "                distance += tl.sum(tl.where(inside, term, 0.0), 1)\n",
            '                term = tl.where(inside, term, 0.0)\n                if METRIC == "chebyshev":\n'
            "                    distance = tl.maximum(distance, tl.max(term, 1))\n                else:\n"
            "                    distance += tl.sum(term, 1)\n",
        ),
    ],
}
# A class small enough for all pairs at once, one for exact costs, one for all threads; SciPy knows the metric's name.
CHECK = """
import interpreter, torch

if not torch.cuda.is_available():
    interpreter.use()

from medoid_cases import class_medoids, logits, random_labels, scipy_medoids
from toast_kernels import backends

device = "cuda" if torch.cuda.is_available() else "cpu"
sizes = ((30, 9, 2, "reference", "cpu", "triton"), (400, 17, 1, "cpu"), (400, 800, 1, "cpu"))
for rows, width, classes, *names in sizes:
    for x in (logits(rows, width), (2 * logits(rows, width)).round()):
        labels = random_labels(rows, classes)
        expected = scipy_medoids(x, labels, classes + 1, "chebyshev")
        for backend in names:
            if backend != "triton" or device == "cuda" or backends.interpreted():
                tensors = [t.to(device if backend == "triton" else "cpu") for t in (x, labels)]
                medoids = class_medoids(*tensors, classes + 1, metric="chebyshev", backend=backend)
                assert medoids.cpu().equal(expected), (backend, rows, medoids, expected)
                print(backend)
"""


@pytest.mark.more
def test_chebyshev(tmp_path):
    tree = seeded_faults.Tree(tmp_path)
    for file, edits in CHEBYSHEV.items():
        path = tmp_path / file
        source = path.read_text()
        for old, new in edits:
            assert source.count(old) == 1, f"{old!r} does not occur exactly once in {file}"
            source = source.replace(old, new)
        path.write_text(source)
    tree.build_module()
    done = tree.run(sys.executable, "-c", f"import sys; sys.path[:0] = ['tests', 'tests/medoids']\n{CHECK}")
    assert done.returncode == 0, done.stdout
    assert done.stdout.split().count("cpu") == 6
