"""Every metric, declared once.

A metric is a constant here; collectors supply its value, METRICS.md, the rules' tests and the dashboards draw
from it. Names, labels and kinds are a contract: renaming one is a breaking change (see DESIGN.md).
"""

from __future__ import annotations

from typing import NamedTuple

COUNTER = "counter"
GAUGE = "gauge"
HISTOGRAM = "histogram"
INFO = "info"  # a gauge that is always 1 and carries its facts as labels

RANK = ("run", "rank")
GPU = ("gpu", "uuid", "run", "rank")

STATES = ("starting", "running", "finished", "failed", "killed", "vanished")
"""Values of the label ``state`` of paddle_run_state; exactly one of them is 1."""

PHASES = ("data", "forward", "backward", "optimizer", "communication", "checkpoint", "eval", "other")
"""Values of the label ``phase`` of paddle_train_phase_seconds_total."""

NOT_A_STEP = ("checkpoint", "eval")
"""Phases whose time is not time of a step, and that throughput leaves out."""

DROP_REASONS = ("not_a_number", "invalid_name", "too_many", "unread")
"""Values of the label ``reason`` of paddle_exporter_dropped_scalars_total."""

STEP_BUCKETS = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0)
"""Upper bounds in seconds: from a toy model's step to one with gradient accumulation over a slow network."""


class Metric(NamedTuple):
    """One metric: ``name`` as Prometheus shows it, ``help`` with unit and scope, ``labels`` in their order."""

    name: str
    kind: str
    help: str
    unit: str
    labels: tuple[str, ...] = RANK
    buckets: tuple[float, ...] = ()


_ALL: dict[str, Metric] = {}


def _add(metric: Metric) -> Metric:
    if metric.name in _ALL:
        raise ValueError(f"{metric.name} is declared twice")
    _ALL[metric.name] = metric
    return metric


def _counter(name: str, unit: str, help: str, labels: tuple[str, ...] = RANK) -> Metric:
    return _add(Metric(name, COUNTER, help, unit, labels))


def _gauge(name: str, unit: str, help: str, labels: tuple[str, ...] = RANK) -> Metric:
    return _add(Metric(name, GAUGE, help, unit, labels))


# --- run and rank -------------------------------------------------------------------------------------------

RUN_INFO = _add(
    Metric(
        "paddle_run_info",
        INFO,
        "Always 1: what is known about this rank of the run; every other label is a fact, tags are tag_<name>.",
        "none",
        (*RANK, "node", "local_rank", "world_size", "commit", "seed", "paddle", "python", "exporter"),
    )
)
RUN_START = _gauge("paddle_run_start_time_seconds", "seconds", "When this rank started, as Unix time.")
RUN_WORLD_SIZE = _gauge("paddle_run_world_size", "ranks", "Number of ranks of the run, as this rank was told.")
RUN_STATE = _gauge(
    "paddle_run_state",
    "none",
    "1 for the state this rank is in, 0 for the others: " + ", ".join(STATES) + ".",
    (*RANK, "state"),
)

# --- training -----------------------------------------------------------------------------------------------

STEPS = _counter("paddle_train_steps_total", "steps", "Training steps this rank has finished since it started.")
SAMPLES = _counter("paddle_train_samples_total", "samples", "Samples this rank has trained on since it started.")
TOKENS = _counter("paddle_train_tokens_total", "tokens", "Tokens this rank has trained on since it started.")
SAMPLES_PER_SECOND = _gauge(
    "paddle_train_samples_per_second",
    "samples per second",
    "Throughput of this rank over its last window of steps (5 to 10 s, or one step when that is longer).",
)
TOKENS_PER_SECOND = _gauge(
    "paddle_train_tokens_per_second",
    "tokens per second",
    "Token throughput of this rank over its last window of steps (5 to 10 s, or one step when that is longer).",
)
GLOBAL_STEP = _gauge("paddle_train_global_step", "steps", "Step of the run, counted on over restarts.")
EPOCH = _gauge("paddle_train_epoch", "epochs", "Epoch this rank is in.")
TARGET_STEPS = _gauge("paddle_train_target_steps", "steps", "Global step at which the run will be done.")
LAST_STEP = _gauge(
    "paddle_train_last_step_timestamp_seconds",
    "seconds",
    "When this rank last finished a step, as Unix time; absent before its first step.",
)
LOSS = _gauge("paddle_train_loss", "none", "Last finite training loss of this rank.")
LEARNING_RATE = _gauge("paddle_train_learning_rate", "none", "Last finite learning rate.")
GRAD_NORM = _gauge("paddle_train_grad_norm", "none", "Last finite global norm of the gradients, before clipping.")
LOSS_SCALE = _gauge("paddle_train_loss_scale", "none", "Loss scale of mixed-precision training.")
SKIPPED_STEPS = _counter(
    "paddle_train_skipped_steps_total", "steps", "Updates that mixed precision skipped because a gradient overflowed."
)
NONFINITE = _counter(
    "paddle_train_nonfinite_total",
    "values",
    "Values of a scalar that were NaN or Inf; such a value is never exposed itself.",
    (*RANK, "scalar"),
)
SPIKES = _counter(
    "paddle_train_spikes_total",
    "spikes",
    "Spikes of a scalar: 3 of 5 values far above its moving average.",
    (*RANK, "scalar"),
)
ZSCORE = _gauge(
    "paddle_train_zscore",
    "standard deviations",
    "Distance of a scalar's logarithm from its moving average, in its own standard deviations.",
    (*RANK, "scalar"),
)
SCALAR = _gauge("paddle_train_scalar", "none", "Last finite value of a scalar that the user logged.", (*RANK, "name"))
EVAL_LOSS = _gauge("paddle_eval_loss", "none", "Loss of the last evaluation.")
EVAL_SCALAR = _gauge("paddle_eval_scalar", "none", "Last finite value of a scalar of the evaluation.", (*RANK, "name"))
STEP_DURATION = _add(
    Metric(
        "paddle_train_step_duration_seconds",
        HISTOGRAM,
        "Time from one step's end to the next, evaluation and checkpoints left out; the first step is not observed.",
        "seconds",
        RANK,
        STEP_BUCKETS,
    )
)
PHASE_SECONDS = _counter(
    "paddle_train_phase_seconds_total",
    "seconds",
    "Time of the training thread by phase (host time), the open phase included: " + ", ".join(PHASES) + ".",
    (*RANK, "phase"),
)

# --- checkpoints --------------------------------------------------------------------------------------------

CHECKPOINT_SAVES = _counter("paddle_checkpoint_saves_total", "saves", "Checkpoints this rank saved.")
CHECKPOINT_FAILURES = _counter("paddle_checkpoint_failures_total", "saves", "Checkpoints this rank failed to save.")
CHECKPOINT_SECONDS = _counter("paddle_checkpoint_seconds_total", "seconds", "Time this rank spent saving checkpoints.")
CHECKPOINT_LAST = _gauge(
    "paddle_checkpoint_last_success_timestamp_seconds",
    "seconds",
    "When this rank last saved a checkpoint, as Unix time; absent before the first.",
)

# --- GPUs ---------------------------------------------------------------------------------------------------

GPU_INFO = _add(
    Metric(
        "paddle_gpu_info",
        INFO,
        "Always 1: name, driver and PCI address of a GPU.",
        "none",
        (*GPU, "name", "driver", "pci_bus_id"),
    )
)
GPU_UTILIZATION = _gauge("paddle_gpu_utilization_ratio", "ratio", "Share of time with a kernel running, 0 to 1.", GPU)
GPU_MEMORY_USED = _gauge("paddle_gpu_memory_used_bytes", "bytes", "Memory in use on the GPU.", GPU)
GPU_MEMORY_TOTAL = _gauge("paddle_gpu_memory_total_bytes", "bytes", "Memory of the GPU.", GPU)
GPU_TEMPERATURE = _gauge("paddle_gpu_temperature_celsius", "degrees Celsius", "Temperature of the GPU.", GPU)
GPU_POWER = _gauge("paddle_gpu_power_watts", "watts", "Power the GPU draws.", GPU)
GPU_ENERGY = _counter("paddle_gpu_energy_joules_total", "joules", "Energy used since the driver was loaded.", GPU)
GPU_SM_CLOCK = _gauge("paddle_gpu_sm_clock_hertz", "hertz", "Clock of the streaming multiprocessors.", GPU)
GPU_THROTTLE = _counter(
    "paddle_gpu_throttle_seconds_total", "seconds", "Time with clocks held down, by reason.", (*GPU, "reason")
)
GPU_ECC = _counter("paddle_gpu_ecc_errors_total", "errors", "ECC errors by kind.", (*GPU, "kind"))
GPU_XID = _counter("paddle_gpu_xid_errors_total", "errors", "XID errors of the driver, by code.", (*GPU, "xid"))
GPU_PCIE_TX = _counter("paddle_gpu_pcie_transmit_bytes_total", "bytes", "Bytes the GPU sent over PCIe.", GPU)
GPU_PCIE_RX = _counter("paddle_gpu_pcie_receive_bytes_total", "bytes", "Bytes the GPU received over PCIe.", GPU)
GPU_NVLINK = _counter("paddle_gpu_nvlink_errors_total", "errors", "NVLink errors by kind.", (*GPU, "kind"))
GPU_ROW_REMAP_FAILURE = _gauge("paddle_gpu_row_remap_failure", "none", "1 when remapping of a row failed.", GPU)
GPU_PROCESS_MEMORY = _gauge(
    "paddle_gpu_process_memory_bytes", "bytes", "Memory that the process of a rank holds on a GPU.", GPU
)

# --- the exporter itself ------------------------------------------------------------------------------------

BUILD_INFO = _add(
    Metric("paddle_exporter_build_info", INFO, "Always 1: versions of the exporter.", "none", ("version", "python"))
)
COLLECTOR_SUCCESS = _gauge(
    "paddle_exporter_collector_success", "none", "1 when a collector's last collection succeeded.", ("collector",)
)
COLLECTOR_DURATION = _gauge(
    "paddle_exporter_collector_duration_seconds", "seconds", "How long a collector took.", ("collector",)
)
DROPPED_SCALARS = _counter(
    "paddle_exporter_dropped_scalars_total",
    "values",
    "Logged values that were not taken, by reason: " + ", ".join(DROP_REASONS) + ".",
    (*RANK, "reason"),
)
PAGE_ERRORS = _gauge(
    "paddle_exporter_page_errors", "pages", "Pages that could not be read at this scrape, by reason.", ("reason",)
)


def metrics() -> tuple[Metric, ...]:
    """All metrics, in the order of their declaration."""
    return tuple(_ALL.values())


def find(name: str) -> Metric:
    """The metric called ``name``; KeyError if there is none."""
    return _ALL[name]
