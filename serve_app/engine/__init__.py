"""Run many requests on one backend: loop, scheduler policy, admission, isolation, calibration. No torch, no Ray."""
