from run_kit import _nobody, _open_prepared, _out, _released, _whole  # noqa: F401
