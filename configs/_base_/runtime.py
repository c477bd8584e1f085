# How a run is logged, saved and seeded. Everything here can be overridden by an experiment.
default_scope = "mmengine"
custom_imports = dict(imports=["projects.sa2va"], allow_failed_imports=False)
runner_type = "Sa2VARunner"
work_dir = None  # --work-dir, or work_dirs/<config name>
env_cfg = dict(
    cudnn_benchmark=False,
    mp_cfg=dict(mp_start_method="fork", opencv_num_threads=0),
    dist_cfg=dict(backend="auto"),  # nccl with an NVIDIA card, else gloo
)
default_hooks = dict(
    timer=dict(type="IterTimerHook"),
    logger=dict(type="LoggerHook", interval=10, log_metric_by_epoch=False),
    param_scheduler=dict(type="ParamSchedulerHook"),
    checkpoint=dict(
        type="Sa2VACheckpointHook",
        by_epoch=False,
        interval=500,
        save_total_limit=2,
        save_best="vessel/dice",
        rule="greater",
    ),
    memory=dict(type="MemoryHook"),
    stop=dict(type="StopOnSignal", signals=["SIGTERM", "SIGUSR1"]),
)
tensorboard = False  # True: curves for TensorBoard beside scalars.json; needs that package
memory_budget_gib = None  # caps what a process takes of its card; None: all of it
log_processor = dict(type="Sa2VALogProcessor", by_epoch=False, window_size=10)
log_level = "INFO"
randomness = dict(seed=0)
load_from = None
resume = False
launcher = "none"

val_cfg = dict(type="Sa2VAValLoop")
test_cfg = dict(type="Sa2VATestLoop")

# A probability map becomes a mask where it is >= threshold. Choose it on validation frames.
val_evaluator = dict(type="VesselMetric", threshold=0.5, metric_set="fast")
test_evaluator = dict(
    type="VesselMetric",
    threshold=0.5,
    metric_set="all",
    save_probabilities="png",
    save_masks=True,
    pictures=dict(best=3, worst=3, random=3, seed=0),
    html_report=True,
)
