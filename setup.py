"""Packaging; tool settings live in pyproject.toml, tested versions in constraints.txt."""

from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
# Those that constraints.txt has been tried with, and .github/workflows/ci.yml runs.
PYTHONS = ["3.10", "3.11", "3.12", "3.13"]
# kernels/ and benchmarks/ are top-level folders for whoever reads the code, and submodules of
# ncsn_fast for whoever imports it: no top-level module called `kernels` is ever installed.
MAPPED = {"ncsn_fast.kernels": "kernels", "ncsn_fast.benchmarks": "benchmarks"}
# What says whose data came along, and by whose the networks were trained.
DATA_OF_OTHERS = ("DIGITS_LICENSE", "NETWORKS", "CLASSIFIERS")
# The tests run the kernels in Triton's interpreter and compile them for GPUs that are not there;
# torch brings Triton along only in its CUDA builds.
TRITON = "triton>=3.4; platform_system == 'Linux'"
# Others who make networks fast on a CPU: contestants of the benchmarks, which do without them.
PEERS = [
    "openvino>=2025.0",
    "onnxruntime>=1.20",
    "onnx>=1.17",
    "onnxscript>=0.3",
    "diffusers>=0.30",
]
TEST = [
    "pytest>=8",
    "pytest-benchmark>=4",
    "pytest-xdist>=3.6",
    "hypothesis>=6.100",
    "setuptools>=68",
    "scipy>=1.11",
    "diffusers>=0.30",
    "markdown-it-py>=3",  # finds the code and the links of the documentation
    TRITON,
]
DOCS = ["sphinx>=8.1", "sphinx-gallery>=0.18", "myst-parser>=4", "furo>=2024.8"]


def mapped_packages() -> list[str]:
    names = []
    for package, folder in MAPPED.items():
        names += [package, *(f"{package}.{sub}" for sub in find_packages(folder))]
    return names


setup(
    name="ncsn_fast",
    version="0.1.0",
    description="A fast and trusted engine for Noise Conditional Score Networks",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="the ncsn_fast authors",
    keywords=["score matching", "Langevin dynamics", "diffusion models", "generative models"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        *(f"Programming Language :: Python :: {python}" for python in PYTHONS),
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    license="MIT AND CC-BY-4.0",  # the code, and the bundled digits
    license_files=["LICENSE", *(f"ncsn_fast/assets/{name}.md" for name in DATA_OF_OTHERS)],
    python_requires=f">={PYTHONS[0]}",
    packages=find_packages(include=["ncsn_fast", "ncsn_fast.*"]) + mapped_packages(),
    package_dir={"ncsn_fast": "ncsn_fast", **MAPPED},
    package_data={
        "ncsn_fast": ["assets/*", "py.typed"],
        "ncsn_fast.tour": ["assets/*"],
        "ncsn_fast.kernels": ["cpp/*.cpp", "cpp/*.h"],
    },
    install_requires=[
        "torch>=2.6",
        "numpy>=1.26",
        "safetensors>=0.4.3",
        "PyYAML>=6.0",
        "click>=8.2",
        "tqdm>=4.64",
        "Pillow>=10",
        "matplotlib>=3.8",
        "ninja>=1.11",  # builds the CPU kernels on first use
        "nvtx>=0.2.13; platform_system == 'Linux'",
    ],
    extras_require={
        "test": TEST,
        "peers": PEERS,
        # Not in TEST: it brings torchvision, which beside a torch for CPUs cannot be imported where
        # it comes from elsewhere, and then breaks whoever looks for it. .ci/run has it alone.
        "evaluate": ["torch-fidelity>=0.4,<0.5"],
        "hub": ["huggingface-hub>=0.23"],  # diffusers brings it to the tests
        "docs": DOCS,
        "dev": [*TEST, *DOCS, "ruff>=0.9", "mypy>=1.14", "types-PyYAML", "types-tqdm"],
    },
    entry_points={"console_scripts": ["ncsn-fast = ncsn_fast.cli:main"]},
)
