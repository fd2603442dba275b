import { spendText } from "./template-budget.ts";
import {
  bind,
  bool,
  contains,
  dict,
  equal,
  fn,
  int,
  isDict,
  isInt,
  isList,
  isNone,
  isString,
  itemsOf,
  list,
  NONE,
  PYTHON_SPACES,
  str,
  strip,
  toStr,
  tuple,
  typeName,
  type Value,
} from "./template-values.ts";

/** The methods of str, list and dict that Jinja's immutable sandbox lets a template call. */
export function methodOf(object: Value, name: string): Value | undefined {
  if (isString(object)) {
    const method = Object.hasOwn(STRING_METHODS, name) ? STRING_METHODS[name] : undefined;
    return method && fn((args) => method(object.value, args));
  }
  if (isDict(object)) {
    const method = Object.hasOwn(DICT_METHODS, name) ? DICT_METHODS[name] : undefined;
    return method && fn((args) => method(object.value, args));
  }
  if (isList(object)) {
    const method = Object.hasOwn(LIST_METHODS, name) ? LIST_METHODS[name] : undefined;
    return method && fn((args) => method(object.value, args));
  }
  return undefined;
}

function text(v: Value | undefined, what: string): string {
  if (v === undefined || !isString(v)) throw new Error(`${what} must be str`);
  return v.value;
}

/** An optional string argument: None is as good as nothing. */
function chars(v: Value | undefined): string | undefined {
  return v === undefined || isNone(v) ? undefined : text(v, "strip arg");
}

function count(v: Value | undefined, fallback: number): number {
  if (v === undefined) return fallback;
  if (!isInt(v)) throw new Error(`'${typeName(v)}' object cannot be interpreted as an integer`);
  return v.value;
}

/** str.capitalize: the first character upper, the rest lower. */
export function capitalize(value: string): string {
  const [first = "", ...rest] = Array.from(value);
  return first.toUpperCase() + rest.join("").toLowerCase();
}

/** str.title: the first letter of every run of letters upper, the others lower. */
function title(value: string): string {
  return value.replace(/\p{L}+/gu, capitalize);
}

function split(value: string, sep: string | undefined, limit: number): string[] {
  if (sep === "") throw new Error("empty separator");
  if (sep !== undefined) {
    const parts = value.split(sep);
    return limit < 0 || parts.length <= limit
      ? parts
      : [...parts.slice(0, limit), parts.slice(limit).join(sep)];
  }
  const parts: string[] = [];
  let rest = strip(value, undefined, true, false);
  while (rest !== "") {
    const gap = limit >= 0 && parts.length >= limit ? null : PYTHON_SPACES.exec(rest);
    if (gap === null) {
      parts.push(rest);
      break;
    }
    parts.push(rest.slice(0, gap.index));
    rest = rest.slice(gap.index + gap[0].length);
  }
  return parts;
}

function rsplit(value: string, sep: string | undefined, limit: number): string[] {
  if (limit < 0) return split(value, sep, -1);
  const backwards = (s: string): string => Array.from(s).reverse().join("");
  return split(backwards(value), sep === undefined ? undefined : backwards(sep), limit)
    .map(backwards)
    .reverse();
}

/** str.replace; an empty `from` stands before every character and at the end. */
export function replace(value: string, from: string, to: string, limit: number): string {
  if (limit < 0) limit = Number.POSITIVE_INFINITY;
  const parts = from === "" ? ["", ...Array.from(value), ""] : value.split(from);
  spendText(value.length + Math.min(limit, parts.length) * to.length);
  let out = parts[0]!;
  for (let i = 1; i < parts.length; i++) out += (i <= limit ? to : from) + parts[i];
  return out;
}

function affixed(args: Value[], test: (affix: string) => boolean): Value {
  const [affix] = bind(args, "prefix");
  const affixes = affix !== undefined && isList(affix) ? affix.value : [affix];
  return bool(affixes.some((a) => test(text(a, "startswith and endswith first arg"))));
}

function find(value: string, args: Value[], from: "indexOf" | "lastIndexOf"): number {
  const [sub] = bind(args, "sub");
  const at = value[from](text(sub, "sub"));
  return at < 0 ? -1 : Array.from(value.slice(0, at)).length;
}

function pad(value: string, args: Value[], left: (total: number) => number): Value {
  const [width, fill] = bind(args, "width", "fillchar");
  const total = Math.max(0, count(width, 0) - Array.from(value).length);
  const letter = fill === undefined ? " " : text(fill, "fill character");
  spendText(total * letter.length);
  const before = left(total);
  return str(letter.repeat(before) + value + letter.repeat(total - before));
}

const is = (value: string, pattern: RegExp): Value => bool(pattern.test(value));

// Python's line ends: among others the separators of ASCII and Unicode.
const LINE_ENDS = "\n\r\v\f\x1c-\x1e\x85\u2028\u2029";
const LINE_END = new RegExp(`(?:\\r\\n|[${LINE_ENDS}])$`);
const LINES = new RegExp(`[^${LINE_ENDS}]*(?:\\r\\n|[${LINE_ENDS}])|[^${LINE_ENDS}]+$`, "g");

type Method<T> = (self: T, args: Value[]) => Value;

const STRING_METHODS: Record<string, Method<string>> = {
  upper: (s) => str(s.toUpperCase()),
  lower: (s) => str(s.toLowerCase()),
  casefold: (s) => str(s.toLowerCase().replaceAll("ß", "ss")),
  title: (s) => str(title(s)),
  capitalize: (s) => str(capitalize(s)),
  swapcase: (s) =>
    str(Array.from(s, (c) => (c === c.toLowerCase() ? c.toUpperCase() : c.toLowerCase())).join("")),
  strip: (s, args) => str(strip(s, chars(bind(args, "chars")[0]))),
  lstrip: (s, args) => str(strip(s, chars(bind(args, "chars")[0]), true, false)),
  rstrip: (s, args) => str(strip(s, chars(bind(args, "chars")[0]), false, true)),
  startswith: (s, args) => affixed(args, (affix) => s.startsWith(affix)),
  endswith: (s, args) => affixed(args, (affix) => s.endsWith(affix)),
  removeprefix: (s, args) => {
    const prefix = text(bind(args, "prefix")[0], "prefix");
    return str(s.startsWith(prefix) ? s.slice(prefix.length) : s);
  },
  removesuffix: (s, args) => {
    const suffix = text(bind(args, "suffix")[0], "suffix");
    return str(suffix !== "" && s.endsWith(suffix) ? s.slice(0, -suffix.length) : s);
  },
  split: (s, args) => {
    const [sep, maxsplit] = bind(args, "sep", "maxsplit");
    return list(split(s, chars(sep), count(maxsplit, -1)).map(str));
  },
  rsplit: (s, args) => {
    const [sep, maxsplit] = bind(args, "sep", "maxsplit");
    return list(rsplit(s, chars(sep), count(maxsplit, -1)).map(str));
  },
  splitlines: (s, args) => {
    const [keep] = bind(args, "keepends");
    const lines = s.match(LINES) ?? [];
    return list(lines.map((line) => str(keep?.__bool__().value ? line : line.replace(LINE_END, ""))));
  },
  partition: (s, args) => {
    const sep = text(bind(args, "sep")[0], "sep");
    const at = s.indexOf(sep);
    return tuple((at < 0 ? [s, "", ""] : [s.slice(0, at), sep, s.slice(at + sep.length)]).map(str));
  },
  rpartition: (s, args) => {
    const sep = text(bind(args, "sep")[0], "sep");
    const at = s.lastIndexOf(sep);
    return tuple((at < 0 ? ["", "", s] : [s.slice(0, at), sep, s.slice(at + sep.length)]).map(str));
  },
  replace: (s, args) => {
    const [from, to, limit] = bind(args, "old", "new", "count");
    return str(replace(s, text(from, "old"), text(to, "new"), count(limit, -1)));
  },
  join: (s, args) => {
    const items = itemsOf(bind(args, "iterable")[0] ?? NONE).map((item) => text(item, "sequence item"));
    spendText(items.reduce((sum, item) => sum + s.length + item.length, 0));
    return str(items.join(s));
  },
  find: (s, args) => int(find(s, args, "indexOf")),
  rfind: (s, args) => int(find(s, args, "lastIndexOf")),
  index: (s, args) => {
    const at = find(s, args, "indexOf");
    if (at < 0) throw new Error("substring not found");
    return int(at);
  },
  count: (s, args) => {
    const sub = text(bind(args, "sub")[0], "sub");
    return int((sub === "" ? Array.from(s).length + 2 : s.split(sub).length) - 1);
  },
  center: (s, args) => pad(s, args, (total) => Math.floor(total / 2)),
  ljust: (s, args) => pad(s, args, () => 0),
  rjust: (s, args) => pad(s, args, (total) => total),
  zfill: (s, args) => {
    const sign = /^[+-]/.exec(s)?.[0] ?? "";
    const width = count(bind(args, "width")[0], 0);
    spendText(Math.max(0, width));
    return str(sign + s.slice(sign.length).padStart(width - sign.length, "0"));
  },
  isdigit: (s) => is(s, /^\p{Nd}+$/u),
  isnumeric: (s) => is(s, /^\p{N}+$/u),
  isalpha: (s) => is(s, /^\p{L}+$/u),
  isalnum: (s) => is(s, /^[\p{L}\p{N}]+$/u),
  isspace: (s) => bool(s !== "" && strip(s) === ""),
  isupper: (s) => bool(s === s.toUpperCase() && s !== s.toLowerCase()),
  islower: (s) => bool(s === s.toLowerCase() && s !== s.toUpperCase()),
};

const DICT_METHODS: Record<string, Method<Map<string, Value>>> = {
  get: (d, args) => {
    const [key, fallback] = bind(args, "key", "default");
    return (key !== undefined && isString(key) ? d.get(key.value) : undefined) ?? fallback ?? NONE;
  },
  items: (d) => list(Array.from(d, ([key, item]) => tuple([str(key), item]))),
  keys: (d) => list(Array.from(d.keys(), str)),
  values: (d) => list(Array.from(d.values())),
  copy: (d) => dict(new Map(d)),
};

const LIST_METHODS: Record<string, Method<Value[]>> = {
  index: (l, args) => {
    const [item = NONE] = bind(args, "value");
    const at = l.findIndex((other) => equal(other, item));
    if (at < 0) throw new Error(`${toStr(item)} is not in list`);
    return int(at);
  },
  count: (l, args) => {
    const [item = NONE] = bind(args, "value");
    return int(l.filter((other) => contains(list([other]), item)).length);
  },
  copy: (l) => list([...l]),
};
