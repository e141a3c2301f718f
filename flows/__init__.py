"""The DAGs. Read `distill_student` and you know the pipeline."""

from flows.environment import prepare_environment

prepare_environment()
