import { spend, spendText } from "./template-budget.ts";
import {
  float,
  int,
  isDict,
  isFloat,
  isInt,
  isList,
  isNamespace,
  isString,
  list,
  numberOf,
  str,
  typeName,
  UNDEFINED,
  type Value,
} from "./template-values.ts";

/** `object[key]`: undefined where there is nothing. Strings are indexed by character. */
export function item(object: Value, key: Value): Value {
  if ((isDict(object) || isNamespace(object)) && isString(key))
    return object.value.get(key.value) ?? UNDEFINED;
  if (isList(object) && isInt(key)) return object.value.at(key.value) ?? UNDEFINED;
  if (isString(object) && isInt(key)) {
    const char = Array.from(object.value).at(key.value);
    return char === undefined ? UNDEFINED : str(char);
  }
  return UNDEFINED;
}

/** Python's object[start:stop:step] of a string or list. */
export function slice(object: Value, start?: number, stop?: number, step = 1): Value {
  if (!isString(object) && !isList(object)) return UNDEFINED;
  if (step === 0) throw new Error("slice step cannot be zero");
  const items: readonly unknown[] = isString(object) ? Array.from(object.value) : object.value;
  const [low, high] = step > 0 ? [0, items.length] : [-1, items.length - 1];
  const clamp = (index: number | undefined, fallback: number): number =>
    index === undefined ? fallback : Math.min(high, Math.max(low, index < 0 ? index + items.length : index));
  const from = clamp(start, step > 0 ? low : high);
  const to = clamp(stop, step > 0 ? high : low);
  const taken: unknown[] = [];
  for (let i = from; step > 0 ? i < to : i > to; i += step) taken.push(items[i]);
  return isString(object) ? str(taken.join("")) : list(taken as Value[]);
}

/** + - * / // % ** with Python's types: text is not added to a number, / is a float, % has the divisor's sign. */
export function arithmetic(operator: string, left: Value, right: Value): Value {
  const a = numberOf(left);
  const b = numberOf(right);
  if (a !== undefined && b !== undefined) {
    const number = isFloat(left) || isFloat(right) ? float : int;
    switch (operator) {
      case "+":
        return number(a + b);
      case "-":
        return number(a - b);
      case "*":
        return number(a * b);
      case "**":
        return b < 0 ? float(a ** b) : number(a ** b);
    }
    if (b === 0) throw new Error("division by zero");
    switch (operator) {
      case "/":
        return float(a / b);
      case "//":
        return number(Math.floor(a / b));
      case "%":
        return number(a - b * Math.floor(a / b));
    }
  }
  if (operator === "+") {
    if (isString(left) && isString(right)) return str(left.value + right.value);
    if (isList(left) && isList(right)) return list([...left.value, ...right.value]);
  }
  if (operator === "*") {
    for (const [repeated, times] of [
      [left, b],
      [right, a],
    ] as const) {
      if (times === undefined) continue;
      const n = Math.max(0, times);
      if (isString(repeated)) {
        spendText(n * repeated.value.length);
        return str(repeated.value.repeat(n));
      }
      if (isList(repeated)) {
        spend(n * (1 + repeated.value.length));
        return list(Array.from({ length: n }, () => repeated.value).flat());
      }
    }
  }
  throw new Error(`unsupported operand types for ${operator}: '${typeName(left)}' and '${typeName(right)}'`);
}

const DAYS = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
const MONTHS = [
  "January",
  "February",
  "March",
  "April",
  "May",
  "June",
  "July",
  "August",
  "September",
  "October",
  "November",
  "December",
];

/** C's strftime in the C locale and local time; %-d is %d without padding. Unknown directives stay. */
export function strftime(date: Date, format: string): string {
  const two = (x: number): string => String(x).padStart(2, "0");
  const day = DAYS[date.getDay()]!;
  const month = MONTHS[date.getMonth()]!;
  const hour12 = date.getHours() % 12 || 12;
  const midnight = new Date(date.getFullYear(), date.getMonth(), date.getDate());
  const newYear = new Date(date.getFullYear(), 0, 1);
  const dayOfYear = Math.round((midnight.getTime() - newYear.getTime()) / 86_400_000) + 1;
  const directives: Record<string, () => string> = {
    a: () => day.slice(0, 3),
    A: () => day,
    b: () => month.slice(0, 3),
    h: () => month.slice(0, 3),
    B: () => month,
    c: () => strftime(date, "%a %b %e %H:%M:%S %Y"),
    d: () => two(date.getDate()),
    D: () => strftime(date, "%m/%d/%y"),
    e: () => String(date.getDate()).padStart(2, " "),
    f: () => String(date.getMilliseconds() * 1000).padStart(6, "0"),
    F: () => strftime(date, "%Y-%m-%d"),
    H: () => two(date.getHours()),
    I: () => two(hour12),
    j: () => String(dayOfYear).padStart(3, "0"),
    m: () => two(date.getMonth() + 1),
    M: () => two(date.getMinutes()),
    n: () => "\n",
    p: () => (date.getHours() < 12 ? "AM" : "PM"),
    R: () => strftime(date, "%H:%M"),
    s: () => String(Math.floor(date.getTime() / 1000)),
    S: () => two(date.getSeconds()),
    t: () => "\t",
    T: () => strftime(date, "%H:%M:%S"),
    u: () => String(date.getDay() || 7),
    w: () => String(date.getDay()),
    x: () => strftime(date, "%m/%d/%y"),
    X: () => strftime(date, "%H:%M:%S"),
    y: () => two(date.getFullYear() % 100),
    Y: () => String(date.getFullYear()),
    // datetime.now() knows no time zone.
    z: () => "",
    Z: () => "",
    "%": () => "%",
  };
  return format.replace(/%(-?)(.)/gs, (whole, bare: string, name: string) => {
    const text = Object.hasOwn(directives, name) ? directives[name]!() : undefined;
    if (text === undefined) return whole;
    return bare === "" ? text : text.replace(/^[0 ]+(?=.)/, "");
  });
}
