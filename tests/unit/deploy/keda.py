"""The part of KEDA's ScaledObject (keda.sh/v1alpha1) that we use, as a JSON schema.

Written from its reference, https://keda.sh/docs/2.22/reference/scaledobject-spec/ and
https://keda.sh/docs/2.22/scalers/prometheus/; what is not listed here is refused.
"""

from typing import Any

_COUNT = {"type": "integer", "minimum": 0}
_TEXT = {"type": "string", "minLength": 1}
_SECONDS = {"type": "integer", "minimum": 0, "maximum": 3600}


def _object(required: list[str], **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "required": required,
        "properties": properties,
        "additionalProperties": False,
    }


_RULES = _object(
    [],
    stabilizationWindowSeconds=_SECONDS,
    policies={
        "type": "array",
        "items": _object(
            ["type", "value", "periodSeconds"],
            type={"enum": ["Pods", "Percent"]},
            value={"type": "integer", "minimum": 1},
            periodSeconds={"type": "integer", "minimum": 1, "maximum": 1800},
        ),
    },
)

_PROMETHEUS = _object(
    ["serverAddress", "query", "threshold"],
    serverAddress={"type": "string", "pattern": "^https?://"},
    query=_TEXT,
    # A trigger's metadata are strings, numbers too.
    threshold={"type": "string", "pattern": r"^\d+(\.\d+)?$"},
    activationThreshold={"type": "string", "pattern": r"^\d+(\.\d+)?$"},
    ignoreNullValues={"enum": ["true", "false"]},
)

SCALED_OBJECT = _object(
    ["apiVersion", "kind", "metadata", "spec"],
    apiVersion={"const": "keda.sh/v1alpha1"},
    kind={"const": "ScaledObject"},
    metadata=_object(["name"], name=_TEXT, namespace=_TEXT, labels={"type": "object"}),
    spec=_object(
        ["scaleTargetRef", "triggers"],
        scaleTargetRef=_object(["name"], apiVersion=_TEXT, kind=_TEXT, name=_TEXT),
        pollingInterval={"type": "integer", "minimum": 1},
        cooldownPeriod=_COUNT,
        minReplicaCount=_COUNT,
        maxReplicaCount={"type": "integer", "minimum": 1},
        fallback=_object(
            ["failureThreshold", "replicas"],
            failureThreshold=_COUNT,
            replicas=_COUNT,
            behavior={
                "enum": [
                    "static",
                    "currentReplicas",
                    "currentReplicasIfHigher",
                    "currentReplicasIfLower",
                ]
            },
        ),
        advanced=_object(
            [],
            horizontalPodAutoscalerConfig=_object(
                [], behavior=_object([], scaleUp=_RULES, scaleDown=_RULES)
            ),
        ),
        triggers={
            "type": "array",
            "minItems": 1,
            "items": _object(
                ["type", "metadata"],
                type={"const": "prometheus"},
                metricType={"enum": ["AverageValue", "Value"]},
                metadata=_PROMETHEUS,
            ),
        },
    ),
)
