import { Environment, Interpreter, parse, tokenize } from "@huggingface/jinja";
import { spend, spendText } from "./template-budget.ts";

/**
 * Values of the Jinja package, seen structurally: it does not export their classes. What they mean is
 * Python's business, and that is what this file adds: printing, equality, order, JSON.
 */
export interface Value {
  readonly type: string;
  readonly value: unknown;
  __bool__(): { readonly value: boolean };
}

export type NativeFunction = (args: Value[], scope: Environment) => Value;

function classOf<T>(sample: unknown): new (value?: T) => Value {
  const value = new Environment().set("sample", sample);
  return value.constructor as new (
    value?: T,
  ) => Value;
}

const IntegerValue = classOf<number>(1);
const FloatValue = classOf<number>(0.5);
const StringValue = classOf<string>("");
const BooleanValue = classOf<boolean>(true);
const ArrayValue = classOf<Value[]>([]);
const ObjectValue = classOf<Map<string, Value>>({});
const FunctionValue = classOf<NativeFunction>(() => null);
const NullValue = classOf<null>(null);
const UndefinedValue = classOf<undefined>(undefined);

/** Classes that only the interpreter itself makes, caught from a call: the argument of `f(…)`. */
function classOfArgument<T>(argument: string): new (value: T) => Value {
  let caught: Value | undefined;
  const environment = new Environment();
  const catcher = new FunctionValue((args) => {
    caught = args[0];
    return new NullValue(null);
  });
  environment.setVariable("f", catcher as ReturnType<Environment["set"]>);
  new Interpreter(environment).run(parse(tokenize(`{{ f(${argument}) }}`)));
  return caught!.constructor as new (
    value: T,
  ) => Value;
}

const TupleValue = classOfArgument<Value[]>("(1, 2)");
const KeywordArgumentsValue = classOfArgument<Map<string, Value>>("a=1");

export const UNDEFINED: Value = new UndefinedValue();
export const NONE: Value = new NullValue(null);

export const int = (value: number): Value => new IntegerValue(value);
export const float = (value: number): Value => new FloatValue(value);
export const str = (value: string): Value => {
  spendText(value.length);
  return new StringValue(value);
};
export const bool = (value: boolean): Value => new BooleanValue(value);
export const list = (value: Value[]): Value => {
  spend(value.length >> 2);
  return new ArrayValue(value);
};
export const tuple = (value: Value[]): Value => new TupleValue(value);
export const dict = (value: Map<string, Value>): Value => new ObjectValue(value);
export const fn = (value: NativeFunction): Value => new FunctionValue(value);
export const keywordArguments = (value: Map<string, Value>): Value => new KeywordArgumentsValue(value);
/** A plain value of JavaScript (JSON, or undefined) as the package holds it. */
export const fromPlain = (value: unknown): Value => new Environment().set("value", value);

export const isString = (v: Value): v is Value & { value: string } => v instanceof StringValue;
export const isInt = (v: Value): v is Value & { value: number } => v instanceof IntegerValue;
export const isBool = (v: Value): v is Value & { value: boolean } => v instanceof BooleanValue;
export const isFloat = (v: Value): v is Value & { value: number } => v instanceof FloatValue;
export const isList = (v: Value): v is Value & { value: Value[] } => v instanceof ArrayValue;
export const isDict = (v: Value): v is Value & { value: Map<string, Value> } => v instanceof ObjectValue;
export const isNamespace = (v: Value): v is Value & { value: Map<string, Value> } =>
  v.type === "NamespaceValue";
export const isFunction = (v: Value): v is Value & { value: NativeFunction } => v instanceof FunctionValue;
export const isNone = (v: Value): boolean => v instanceof NullValue;
export const isUndefined = (v: Value): boolean => v instanceof UndefinedValue;
export const isKeywords = (v: Value): boolean => v instanceof KeywordArgumentsValue;
export const truthy = (v: Value): boolean => v.__bool__().value;

/** A number as arithmetic sees it (True is 1), undefined where it is none. */
export function numberOf(v: Value): number | undefined {
  if (isInt(v) || isFloat(v)) return v.value;
  return isBool(v) ? Number(v.value) : undefined;
}

/** Python's name of the type, for messages. */
export function typeName(v: Value): string {
  if (isString(v)) return "str";
  if (isInt(v)) return "int";
  if (isBool(v)) return "bool";
  if (isFloat(v)) return "float";
  if (isList(v)) return v instanceof TupleValue ? "tuple" : "list";
  if (isDict(v)) return "dict";
  if (isNone(v)) return "NoneType";
  return isUndefined(v) ? "Undefined" : v.type;
}

/** The items a `for` loop or a filter sees: characters of a string, keys of a dict, nothing of undefined. */
export function itemsOf(v: Value): Value[] {
  if (isList(v)) return v.value;
  if (isString(v)) return Array.from(v.value, str);
  if (isDict(v)) return Array.from(v.value.keys(), str);
  if (isUndefined(v)) return [];
  throw new Error(`'${typeName(v)}' object is not iterable`);
}

export function lengthOf(v: Value): number {
  if (isDict(v)) return v.value.size;
  if (isList(v)) return v.value.length;
  if (isUndefined(v)) return 0;
  if (isString(v)) {
    spendText(v.value.length);
    return Array.from(v.value).length;
  }
  throw new Error(`object of type '${typeName(v)}' has no len()`);
}

/** Python's str(): what `{{ … }}` prints. */
export function toStr(v: Value): string {
  if (isString(v)) return v.value;
  return isUndefined(v) ? "" : repr(v);
}

/** Python's repr(). */
export function repr(v: Value): string {
  spend(1);
  if (isString(v)) return reprString(v.value);
  if (isInt(v)) return String(v.value);
  if (isFloat(v)) return reprFloat(v.value);
  if (isBool(v)) return v.value ? "True" : "False";
  if (isNone(v)) return "None";
  if (isUndefined(v)) return "Undefined";
  if (isList(v)) {
    const items = v.value.map(repr).join(", ");
    if (!(v instanceof TupleValue)) return `[${items}]`;
    return v.value.length === 1 ? `(${items},)` : `(${items})`;
  }
  if (isDict(v))
    return `{${Array.from(v.value, ([key, item]) => `${reprString(key)}: ${repr(item)}`).join(", ")}}`;
  throw new Error(`cannot print a value of type ${typeName(v)}`);
}

const NAMED_ESCAPES: Record<string, string> = { "\n": "\\n", "\r": "\\r", "\t": "\\t", "\\": "\\\\" };

function reprString(text: string): string {
  spendText(text.length);
  // Looking at every character costs more than copying it.
  spend(text.length >> 4);
  const quote = text.includes("'") && !text.includes('"') ? '"' : "'";
  const escaped = text.replace(/[\\\p{C}\p{Zl}\p{Zp}]|(?! )\p{Zs}/gu, (char) => {
    const code = char.codePointAt(0)!;
    if (NAMED_ESCAPES[char] !== undefined) return NAMED_ESCAPES[char];
    if (code < 0x100) return `\\x${code.toString(16).padStart(2, "0")}`;
    if (code < 0x10000) return `\\u${code.toString(16).padStart(4, "0")}`;
    return `\\U${code.toString(16).padStart(8, "0")}`;
  });
  return quote + (quote === "'" ? escaped.replaceAll("'", "\\'") : escaped) + quote;
}

/** Shortest digits that read back, as Python writes them: 1.0, 1e-05, 1e+16, inf. */
export function reprFloat(x: number): string {
  if (Number.isNaN(x)) return "nan";
  if (!Number.isFinite(x)) return x > 0 ? "inf" : "-inf";
  if (Object.is(x, -0)) return "-0.0";
  if (x === 0) return "0.0";
  const [mantissa, exponent] = x.toExponential().split("e") as [string, string];
  const power = Number(exponent);
  if (power < -4 || power >= 16) {
    return `${mantissa}e${power < 0 ? "-" : "+"}${String(Math.abs(power)).padStart(2, "0")}`;
  }
  if (power >= 0) return Number.isInteger(x) ? `${BigInt(x)}.0` : String(x);
  return x.toFixed(mantissa.replace(/[-.]/g, "").length - 1 - power);
}

/** Python's ==. */
export function equal(a: Value, b: Value): boolean {
  spend(1);
  const x = numberOf(a);
  const y = numberOf(b);
  if (x !== undefined || y !== undefined) return x === y;
  if (isString(a)) return isString(b) && a.value === b.value;
  if (isNone(a)) return isNone(b);
  if (isUndefined(a)) return isUndefined(b);
  if (isList(a)) {
    if (!isList(b) || typeName(a) !== typeName(b)) return false;
    const other = b.value;
    return a.value.length === other.length && a.value.every((item, i) => equal(item, other[i]!));
  }
  if (isDict(a)) {
    if (!isDict(b) || a.value.size !== b.value.size) return false;
    for (const [key, item] of a.value) {
      const other = b.value.get(key);
      if (other === undefined || !equal(item, other)) return false;
    }
    return true;
  }
  return a === b;
}

/** Python's order of numbers, strings (by code point) and lists: negative, 0 or positive. */
export function compare(a: Value, b: Value): number {
  const x = numberOf(a);
  const y = numberOf(b);
  if (x !== undefined && y !== undefined) return x < y ? -1 : x > y ? 1 : 0;
  if (isString(a) && isString(b)) return compareStrings(a.value, b.value);
  if (isList(a) && isList(b)) {
    for (let i = 0; i < Math.min(a.value.length, b.value.length); i++) {
      if (!equal(a.value[i]!, b.value[i]!)) return compare(a.value[i]!, b.value[i]!);
    }
    return a.value.length - b.value.length;
  }
  throw new Error(`'<' not supported between instances of '${typeName(a)}' and '${typeName(b)}'`);
}

export function compareStrings(a: string, b: string): number {
  spendText(a.length + b.length);
  const x = Array.from(a, (char) => char.codePointAt(0)!);
  const y = Array.from(b, (char) => char.codePointAt(0)!);
  for (let i = 0; i < Math.min(x.length, y.length); i++) if (x[i] !== y[i]) return x[i]! - y[i]!;
  return x.length - y.length;
}

export function contains(container: Value, item: Value): boolean {
  if (isString(container)) {
    if (!isString(item)) throw new Error(`'in <string>' requires string, not ${typeName(item)}`);
    return container.value.includes(item.value);
  }
  if (isDict(container)) return isString(item) && container.value.has(item.value);
  return itemsOf(container).some((other) => equal(other, item));
}

/** Characters Python's str.strip() takes off; JavaScript's trim() differs in U+FEFF and the separators. */
const PYTHON_SPACE = "\t-\r\x1c-\x20\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000";
const LEADING = new RegExp(`^[${PYTHON_SPACE}]+`);
const TRAILING = new RegExp(`(?<![${PYTHON_SPACE}])[${PYTHON_SPACE}]+$`);
export const PYTHON_SPACES = new RegExp(`[${PYTHON_SPACE}]+`);

/** str.strip, lstrip, rstrip: of white space, or of any of the given characters. */
export function strip(text: string, chars?: string, left = true, right = true): string {
  if (chars === undefined) {
    if (left) text = text.replace(LEADING, "");
    return right ? text.replace(TRAILING, "") : text;
  }
  const set = new Set(chars);
  const letters = Array.from(text);
  let from = 0;
  let to = letters.length;
  if (left) while (from < to && set.has(letters[from]!)) from++;
  if (right) while (to > from && set.has(letters[to - 1]!)) to--;
  return letters.slice(from, to).join("");
}

export interface JsonStyle {
  readonly ensureAscii: boolean;
  readonly indent: string | undefined;
  readonly separators: readonly [string, string] | undefined;
  readonly sortKeys: boolean;
}

/** json.dumps, with which transformers replaces Jinja's tojson. */
export function toJson(v: Value, style: JsonStyle, depth = 0): string {
  spend(1);
  const { indent, ensureAscii } = style;
  const [comma, colon] = style.separators ?? (indent === undefined ? [", ", ": "] : [",", ": "]);
  const string = (text: string): string => {
    spendText(text.length);
    const quoted = JSON.stringify(text);
    if (!ensureAscii) return quoted;
    return quoted.replace(/[\x80-\uffff]/g, (c) => `\\u${c.charCodeAt(0).toString(16).padStart(4, "0")}`);
  };
  const block = (open: string, items: string[], close: string): string => {
    if (items.length === 0) return open + close;
    if (indent === undefined) return open + items.join(comma) + close;
    spendText((items.length + 1) * (1 + (depth + 1) * indent.length));
    const inner = `\n${indent.repeat(depth + 1)}`;
    return `${open}${inner}${items.join(comma + inner)}\n${indent.repeat(depth)}${close}`;
  };
  if (isString(v)) return string(v.value);
  if (isNone(v)) return "null";
  if (isBool(v)) return v.value ? "true" : "false";
  if (isInt(v)) return String(v.value);
  if (isFloat(v)) {
    if (Number.isFinite(v.value)) return reprFloat(v.value);
    return Number.isNaN(v.value) ? "NaN" : v.value > 0 ? "Infinity" : "-Infinity";
  }
  if (isList(v)) {
    return block(
      "[",
      v.value.map((item) => toJson(item, style, depth + 1)),
      "]",
    );
  }
  if (isDict(v)) {
    const entries = Array.from(v.value);
    if (style.sortKeys) entries.sort(([a], [b]) => compareStrings(a, b));
    const items = entries.map(([key, item]) => string(key) + colon + toJson(item, style, depth + 1));
    return block("{", items, "}");
  }
  throw new Error(`Object of type ${typeName(v)} is not JSON serializable`);
}

/** Positional and keyword arguments of a call, by the names of its parameters. */
export function bind(args: readonly Value[], ...names: string[]): (Value | undefined)[] {
  const last = args.at(-1);
  const keywords = last !== undefined && isKeywords(last) ? (last.value as Map<string, Value>) : undefined;
  const positional = keywords ? args.slice(0, -1) : args;
  if (positional.length > names.length) throw new Error(`takes at most ${names.length} arguments`);
  for (const key of keywords?.keys() ?? []) {
    if (!names.includes(key)) throw new Error(`got an unexpected keyword argument '${key}'`);
  }
  return names.map((name, i) => positional[i] ?? keywords?.get(name));
}
