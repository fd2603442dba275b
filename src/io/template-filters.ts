import { spend, spendText } from "./template-budget.ts";
import { capitalize, methodOf, replace } from "./template-methods.ts";
import {
  bind,
  compare,
  contains,
  dict,
  equal,
  float,
  int,
  isBool,
  isDict,
  isFloat,
  isFunction,
  isInt,
  isKeywords,
  isList,
  isNamespace,
  isNone,
  isString,
  isUndefined,
  itemsOf,
  lengthOf,
  list,
  NONE,
  numberOf,
  str,
  strip,
  toJson,
  toStr,
  truthy,
  tuple,
  UNDEFINED,
  type Value,
} from "./template-values.ts";

/** Jinja2's built-in tests (`x is …`); undefined where there is no such test. */
export function findTest(name: string): ((v: Value, ...args: Value[]) => boolean) | undefined {
  return Object.hasOwn(TESTS, name) ? TESTS[name] : undefined;
}

/** Jinja2's built-in filters, and tojson as transformers defines it. */
export function findFilter(name: string): ((v: Value, args: Value[]) => Value) | undefined {
  return Object.hasOwn(FILTERS, name) ? FILTERS[name] : undefined;
}

/** `value.name` as a filter's `attribute` sees it: dotted path, integers index lists. */
function attribute(v: Value, path: Value): Value {
  if (isInt(path)) return isList(v) ? (v.value.at(path.value) ?? UNDEFINED) : UNDEFINED;
  for (const name of toStr(path).split(".")) {
    if (isDict(v) || isNamespace(v)) v = v.value.get(name) ?? UNDEFINED;
    else if (isList(v) && /^\d+$/.test(name)) v = v.value[Number(name)] ?? UNDEFINED;
    else v = UNDEFINED;
  }
  return v;
}

const flag = (v: Value | undefined, fallback = false): boolean => (v === undefined ? fallback : truthy(v));

function integer(v: Value | undefined, fallback: number): number {
  if (v === undefined || isNone(v)) return fallback;
  const x = numberOf(v);
  if (x === undefined || isFloat(v)) throw new Error("an integer is required");
  return x;
}

/** The key a case-insensitive comparison uses. */
const folded = (v: Value, caseSensitive: boolean): Value =>
  isString(v) && !caseSensitive ? str(v.value.toLowerCase()) : v;

function keyed(path: Value | undefined, caseSensitive: boolean): (v: Value) => Value {
  return (v) => folded(path === undefined || isNone(path) ? v : attribute(v, path), caseSensitive);
}

function best(v: Value, args: Value[], sign: number): Value {
  const [caseSensitive, path] = bind(args, "case_sensitive", "attribute");
  const key = keyed(path, flag(caseSensitive));
  let found: Value | undefined;
  for (const item of itemsOf(v)) {
    if (found === undefined || sign * compare(key(item), key(found)) > 0) found = item;
  }
  return found ?? UNDEFINED;
}

/** select, reject (byAttribute false) and selectattr, rejectattr: keeps items by a test or by truth. */
function choose(v: Value, args: Value[], byAttribute: boolean, keep: boolean): Value {
  const rest = [...args];
  const path = byAttribute ? rest.shift() : undefined;
  if (byAttribute && path === undefined) throw new Error("missing the attribute's name");
  const name = rest.shift();
  const test = name === undefined ? truthy : findTest(toStr(name));
  if (test === undefined) throw new Error(`No test named '${toStr(name ?? NONE)}'.`);
  return list(
    itemsOf(v).filter((item) => test(path === undefined ? item : attribute(item, path), ...rest) === keep),
  );
}

function mapped(v: Value, args: Value[]): Value {
  const last = args.at(-1);
  if (last !== undefined && isKeywords(last)) {
    const [path, fallback] = bind([last], "attribute", "default");
    if (path === undefined) throw new Error("map needs a filter or an attribute");
    return list(
      itemsOf(v).map((item) => {
        const value = attribute(item, path);
        return isUndefined(value) && fallback !== undefined ? fallback : value;
      }),
    );
  }
  const [name, ...rest] = args;
  const filter = name === undefined ? undefined : findFilter(toStr(name));
  if (filter === undefined) throw new Error(`No filter named '${toStr(name ?? NONE)}'.`);
  return list(itemsOf(v).map((item) => filter(item, rest)));
}

/** int(): of text the leading sign and digits must be all there is, or the default counts. */
function toInt(v: Value, args: Value[]): Value {
  const [fallback = int(0), base] = bind(args, "default", "base");
  const x = numberOf(v);
  if (x !== undefined) return Number.isFinite(x) ? int(Math.trunc(x)) : fallback;
  if (!isString(v)) return fallback;
  const text = strip(v.value).replaceAll("_", "");
  const radix = integer(base, 10);
  if (radix === 10 && /^[+-]?\d+$/.test(text)) return int(Number(text));
  if (radix !== 10 && /^[+-]?(0[xobXOB])?[0-9a-zA-Z]+$/.test(text)) {
    const parsed = Number.parseInt(text.replace(/0[xobXOB]/, ""), radix);
    return Number.isNaN(parsed) ? fallback : int(parsed);
  }
  const parsed = toFloat(v, [NONE]);
  return isNone(parsed) || !Number.isFinite(parsed.value)
    ? fallback
    : int(Math.trunc(parsed.value as number));
}

function toFloat(v: Value, args: Value[]): Value {
  const [fallback = float(0)] = bind(args, "default");
  const x = numberOf(v);
  if (x !== undefined) return float(x);
  const text = isString(v) ? strip(v.value) : "";
  if (/^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i.test(text)) return float(Number(text));
  const special = /^([+-]?)(inf|infinity|nan)$/i.exec(text);
  if (special === null) return fallback;
  if (special[2]!.toLowerCase() === "nan") return float(Number.NaN);
  return float(special[1] === "-" ? Number.NEGATIVE_INFINITY : Number.POSITIVE_INFINITY);
}

/** Python rounds halves to even. */
function round(v: Value, args: Value[]): Value {
  const [precision, method] = bind(args, "precision", "method");
  const x = numberOf(v);
  if (x === undefined) throw new Error("round needs a number");
  const scale = 10 ** integer(precision, 0);
  const how = method === undefined ? "common" : toStr(method);
  const scaled = x * scale;
  if (how === "ceil") return float(Math.ceil(scaled) / scale);
  if (how === "floor") return float(Math.floor(scaled) / scale);
  const floor = Math.floor(scaled);
  const half = scaled - floor === 0.5;
  return float((half ? floor + (floor % 2 === 0 ? 0 : 1) : Math.round(scaled)) / scale);
}

function spaces(count: number): string {
  spendText(count);
  return " ".repeat(count);
}

function indent(v: Value, args: Value[]): Value {
  const [width, first, blank] = bind(args, "width", "first", "blank");
  const unit = width !== undefined && isString(width) ? width.value : spaces(integer(width, 4));
  const lines = `${toStr(v)}\n`.split("\n").slice(0, -1);
  spendText(lines.length * unit.length);
  return str(
    lines
      .map((line, i) =>
        (i === 0 && !flag(first)) || (line === "" && i > 0 && !flag(blank)) ? line : unit + line,
      )
      .join("\n"),
  );
}

function tojson(v: Value, args: Value[]): Value {
  const [ascii, width, separators, sort] = bind(args, "ensure_ascii", "indent", "separators", "sort_keys");
  let pair: [string, string] | undefined;
  if (separators !== undefined && !isNone(separators)) {
    const [comma, colon] = itemsOf(separators).map(toStr);
    if (comma === undefined || colon === undefined) throw new Error("separators needs two strings");
    pair = [comma, colon];
  }
  let unit: string | undefined;
  if (width !== undefined && !isNone(width)) {
    unit = isString(width) ? width.value : spaces(Math.max(0, integer(width, 0)));
  }
  return str(toJson(v, { ensureAscii: flag(ascii), indent: unit, separators: pair, sortKeys: flag(sort) }));
}

function sum(v: Value, args: Value[]): Value {
  const [path, start = int(0)] = bind(args, "attribute", "start");
  let total = numberOf(start) ?? Number.NaN;
  let integers = !isFloat(start);
  for (const item of itemsOf(v)) {
    const value = path === undefined || isNone(path) ? item : attribute(item, path);
    const x = numberOf(value);
    if (x === undefined) throw new Error("sum needs numbers");
    total += x;
    integers &&= !isFloat(value);
  }
  return integers ? int(total) : float(total);
}

/** A method of str as a filter, on whatever prints. */
const asMethod = (name: string) => (v: Value) => {
  const method = methodOf(str(toStr(v)), name)!;
  return (method.value as (args: Value[]) => Value)([]);
};

const defaulted = (v: Value, args: Value[]): Value => {
  const [fallback = str(""), boolean] = bind(args, "default_value", "boolean");
  return isUndefined(v) || (flag(boolean) && !truthy(v)) ? fallback : v;
};

const length = (v: Value): Value => int(lengthOf(v));

const escapeHtml = (v: Value): Value =>
  str(
    toStr(v)
      .replaceAll("&", "&amp;")
      .replaceAll("<", "&lt;")
      .replaceAll(">", "&gt;")
      .replaceAll("'", "&#39;")
      .replaceAll('"', "&#34;"),
  );

const FILTERS: Record<string, (v: Value, args: Value[]) => Value> = {
  abs: (v) => {
    const x = numberOf(v);
    if (x === undefined) throw new Error("abs needs a number");
    return isFloat(v) ? float(Math.abs(x)) : int(Math.abs(x));
  },
  attr: (v, args) => methodOf(v, toStr(bind(args, "name")[0] ?? NONE)) ?? UNDEFINED,
  batch: (v, args) => {
    const [size, fill] = bind(args, "linecount", "fill_with");
    const items = itemsOf(v);
    const rows: Value[] = [];
    const width = Math.max(1, integer(size, 1));
    if (fill !== undefined && items.length > 0) spend(width);
    for (let i = 0; i < items.length; i += width) {
      const row = items.slice(i, i + width);
      while (fill !== undefined && row.length < width) row.push(fill);
      rows.push(list(row));
    }
    return list(rows);
  },
  capitalize: (v) => str(capitalize(toStr(v))),
  count: length,
  d: defaulted,
  default: defaulted,
  dictsort: (v, args) => {
    const [caseSensitive, by, reverse] = bind(args, "case_sensitive", "by", "reverse");
    if (!isDict(v)) throw new Error("dictsort needs a dict");
    const column = by === undefined || toStr(by) === "key" ? 0 : 1;
    const key = (pair: Value): Value => folded((pair.value as Value[])[column]!, flag(caseSensitive));
    const pairs = Array.from(v.value, ([name, item]) => tuple([str(name), item]));
    return list(pairs.sort((a, b) => (flag(reverse) ? -1 : 1) * compare(key(a), key(b))));
  },
  e: escapeHtml,
  escape: escapeHtml,
  first: (v) => itemsOf(v)[0] ?? UNDEFINED,
  float: toFloat,
  forceescape: escapeHtml,
  groupby: (v, args) => {
    const [path = NONE, fallback, caseSensitive] = bind(args, "attribute", "default", "case_sensitive");
    const key = (item: Value): Value => {
      const value = attribute(item, path);
      return isUndefined(value) && fallback !== undefined ? fallback : value;
    };
    const fold = (item: Value): Value => folded(key(item), flag(caseSensitive));
    const groups: { key: Value; items: Value[] }[] = [];
    for (const item of [...itemsOf(v)].sort((a, b) => compare(fold(a), fold(b)))) {
      const last = groups.at(-1);
      if (last !== undefined && equal(fold(last.items[0]!), fold(item))) last.items.push(item);
      else groups.push({ key: key(item), items: [item] });
    }
    return list(groups.map((group) => tuple([group.key, list(group.items)])));
  },
  indent,
  int: toInt,
  items: (v) => {
    if (isUndefined(v)) return list([]);
    if (!isDict(v)) throw new Error("Can only get item pairs from a mapping.");
    return list(Array.from(v.value, ([key, item]) => tuple([str(key), item])));
  },
  join: (v, args) => {
    const [separator, path] = bind(args, "d", "attribute");
    const items = itemsOf(v).map((item) => toStr(path === undefined ? item : attribute(item, path)));
    const between = separator === undefined ? "" : toStr(separator);
    spendText(items.reduce((sum, item) => sum + between.length + item.length, 0));
    return str(items.join(between));
  },
  last: (v) => itemsOf(v).at(-1) ?? UNDEFINED,
  length,
  list: (v) => list([...itemsOf(v)]),
  lower: asMethod("lower"),
  map: mapped,
  max: (v, args) => best(v, args, 1),
  min: (v, args) => best(v, args, -1),
  reject: (v, args) => choose(v, args, false, false),
  rejectattr: (v, args) => choose(v, args, true, false),
  replace: (v, args) => {
    const [from = UNDEFINED, to = UNDEFINED, limit] = bind(args, "old", "new", "count");
    return str(replace(toStr(v), toStr(from), toStr(to), integer(limit, -1)));
  },
  reverse: (v) =>
    isString(v) ? str(Array.from(v.value).reverse().join("")) : list([...itemsOf(v)].reverse()),
  round,
  safe: (v) => str(toStr(v)),
  select: (v, args) => choose(v, args, false, true),
  selectattr: (v, args) => choose(v, args, true, true),
  sort: (v, args) => {
    const [reverse, caseSensitive, path] = bind(args, "reverse", "case_sensitive", "attribute");
    const key = keyed(path, flag(caseSensitive));
    const sign = flag(reverse) ? -1 : 1;
    return list([...itemsOf(v)].sort((a, b) => sign * compare(key(a), key(b))));
  },
  string: (v) => str(toStr(v)),
  sum,
  title: (v) =>
    // Jinja's own: words after white space, hyphens and brackets begin large.
    str(toStr(v).replace(/[^-\s({[<]+/g, (word) => capitalize(word))),
  tojson,
  trim: (v, args) => {
    const [chars] = bind(args, "chars");
    return str(strip(toStr(v), chars === undefined || isNone(chars) ? undefined : toStr(chars)));
  },
  unique: (v, args) => {
    const [caseSensitive, path] = bind(args, "case_sensitive", "attribute");
    const key = keyed(path, flag(caseSensitive));
    const seen: Value[] = [];
    return list(
      itemsOf(v).filter((item) => {
        const value = key(item);
        if (seen.some((other) => equal(other, value))) return false;
        seen.push(value);
        return true;
      }),
    );
  },
  upper: asMethod("upper"),
  wordcount: (v) => int(toStr(v).match(/[\p{L}\p{N}_]+/gu)?.length ?? 0),
};

const ordered = (holds: (order: number) => boolean) => (a: Value, b: Value) => holds(compare(a, b));
const equalTo = (a: Value, b: Value = UNDEFINED): boolean => equal(a, b);
const even = (v: Value): boolean => (numberOf(v) ?? Number.NaN) % 2 === 0;

const TESTS: Record<string, (v: Value, ...args: Value[]) => boolean> = {
  boolean: isBool,
  callable: isFunction,
  defined: (v) => !isUndefined(v),
  divisibleby: (v, by = UNDEFINED) => (numberOf(v) ?? Number.NaN) % (numberOf(by) ?? Number.NaN) === 0,
  eq: equalTo,
  equalto: equalTo,
  "==": equalTo,
  even,
  false: (v) => isBool(v) && !v.value,
  float: isFloat,
  ge: ordered((order) => order >= 0),
  gt: ordered((order) => order > 0),
  greaterthan: ordered((order) => order > 0),
  in: (v, container = UNDEFINED) => contains(container, v),
  integer: isInt,
  iterable: (v) => isString(v) || isList(v) || isDict(v) || isUndefined(v),
  le: ordered((order) => order <= 0),
  lessthan: ordered((order) => order < 0),
  lower: (v) => truthy((methodOf(str(toStr(v)), "islower")!.value as (args: Value[]) => Value)([])),
  lt: ordered((order) => order < 0),
  mapping: isDict,
  ne: (a, b = UNDEFINED) => !equal(a, b),
  none: isNone,
  number: (v) => numberOf(v) !== undefined,
  odd: (v) => numberOf(v) !== undefined && !even(v),
  sameas: (a, b = UNDEFINED) => a === b || (!isList(a) && !isDict(a) && equal(a, b)),
  sequence: (v) => isString(v) || isList(v) || isDict(v) || isUndefined(v),
  string: isString,
  true: (v) => isBool(v) && v.value,
  undefined: isUndefined,
  upper: (v) => truthy((methodOf(str(toStr(v)), "isupper")!.value as (args: Value[]) => Value)([])),
};

/** dict(pairs, key=value). */
export function makeDict(args: Value[]): Value {
  const entries = new Map<string, Value>();
  for (const arg of args) {
    if (isDict(arg)) for (const [key, item] of arg.value) entries.set(key, item);
    else {
      for (const pair of itemsOf(arg)) {
        const [key = UNDEFINED, item = UNDEFINED] = itemsOf(pair);
        entries.set(toStr(key), item);
      }
    }
  }
  return dict(entries);
}
