from run_kit import _nobody, _out, _released, _whole  # noqa: F401
