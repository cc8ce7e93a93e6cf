"""Methods of pre-training; each is a guest of the engine."""

from efficient_mae.methods.base import Method, MethodConfig, MethodSettings, Output, Plan, Planner, backbone_of
from efficient_mae.methods.masked import MaskedMethod, MaskedPlan, MaskedPlanner
from efficient_mae.methods.registry import METHODS, create_model, method_of, model_config, register

__all__ = [
    "METHODS",
    "MaskedMethod",
    "MaskedPlan",
    "MaskedPlanner",
    "Method",
    "MethodConfig",
    "MethodSettings",
    "Output",
    "Plan",
    "Planner",
    "backbone_of",
    "create_model",
    "method_of",
    "model_config",
    "register",
]
