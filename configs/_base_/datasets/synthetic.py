# Synthetic angiograms written by tools/make_synthetic.py; file names begin with the patient.
_base_ = ["./coco_vessel.py"]

data_root = "{{$SYNTHETIC_ROOT:work_dirs/synthetic}}"
_patient = dict(type="regex", pattern=r"^(P\d+)_")
train_dataloader = dict(dataset=dict(patient=_patient))
val_dataloader = dict(dataset=dict(patient=_patient))
test_dataloader = dict(dataset=dict(patient=_patient))
