# SPDX-License-Identifier: Apache-2.0
"""The JSON schema of the configuration file."""

from __future__ import annotations

import ast
import functools
import inspect
import itertools
import sys
from collections.abc import Mapping
from typing import Any

from pydantic import json_schema as json_schema_
from pydantic_core import core_schema

from target.configuration.settings import Settings


class _WithDescriptions(json_schema_.GenerateJsonSchema):
    """A generator of schemas that describes each key with the string below it.

    pydantic can do that by itself (`use_attribute_docstrings`), but does it at each import of the settings, which costs
    a sixth of the time of `wolun config check`.
    """

    def model_schema(self, schema: core_schema.ModelSchema) -> json_schema_.JsonSchemaValue:
        described = super().model_schema(schema)
        model = schema["cls"]
        for key, text in itertools.pairwise(_classes(model.__module__)[model.__name__].body):
            match key, text:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(description))):
                    described["properties"][name]["description"] = inspect.cleandoc(description)
        return described


@functools.cache
def _classes(module: str) -> Mapping[str, ast.ClassDef]:
    """Return the classes in a module's source, by name."""
    source = ast.parse(inspect.getsource(sys.modules[module]))
    return {node.name: node for node in source.body if isinstance(node, ast.ClassDef)}


def json_schema() -> dict[str, Any]:
    """Return the JSON schema of the configuration file, for editors and other programs."""
    schema = Settings.model_json_schema(schema_generator=_WithDescriptions)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "wolun configuration"}
