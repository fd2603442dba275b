import { type FieldInfo, fieldsOf, type Schema } from "../config/fields.ts";
import type { Flag } from "./command.ts";

/** The flags of a schema, with the values it starts from. */
export function flagsOf(schema: Schema, starting?: ReadonlyMap<string, unknown>): Flag[] {
  return fieldsOf(schema).map((info) => ({
    name: info.name,
    aliases: info.aliases,
    boolean: info.kind === "boolean" && !info.nullable,
    value: placeholder(info),
    description: info.description,
    fallback: fallbackText(info, starting === undefined ? info.fallback : starting.get(info.name)),
  }));
}

function placeholder(info: FieldInfo): string {
  switch (info.kind) {
    case "choice":
      return info.choices.join("|");
    case "integer":
      return "N";
    case "number":
      return "X";
    case "boolean":
      return info.nullable ? "true|false|none" : "true|false";
    case "text":
      return "TEXT";
    case "rewards":
      return "NAME[,NAME...]";
    case "detector":
      return "NAME";
  }
}

function fallbackText(info: FieldInfo, value: unknown): string | undefined {
  if (info.kind === "rewards" && Array.isArray(value)) return value.map(({ as }) => as).join(",") || "none";
  if (value === undefined) return "required";
  return value === null ? "none" : String(value);
}
