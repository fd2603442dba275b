import { Environment, Interpreter, parse, tokenize } from "@huggingface/jinja";
import { spend, spendText, withBudget } from "./template-budget.ts";
import { findFilter, findTest, makeDict } from "./template-filters.ts";
import { methodOf } from "./template-methods.ts";
import { arithmetic, item, slice, strftime } from "./template-operators.ts";
import {
  bind,
  bool,
  compare,
  contains,
  dict,
  equal,
  fn,
  fromPlain,
  int,
  isDict,
  isFunction,
  isInt,
  isList,
  isNone,
  isString,
  isUndefined,
  itemsOf,
  keywordArguments,
  list,
  NONE,
  str,
  toStr,
  truthy,
  typeName,
  UNDEFINED,
  type Value,
} from "./template-values.ts";

type Statement = Parameters<Interpreter["evaluate"]>[0];
type RuntimeValue = ReturnType<Interpreter["evaluate"]>;

/** A node of the syntax tree, as far as this file looks into it. */
interface Node {
  readonly type: string;
}
interface Named extends Node {
  readonly value: string;
}
interface IfNode extends Node {
  readonly test: Node;
  readonly body: readonly Node[];
  readonly alternate: readonly Node[];
}
interface ForNode extends Node {
  readonly loopvar: Node & { readonly value: string | readonly Named[] };
  readonly iterable: Node & { readonly lhs?: Node; readonly test?: Node };
  readonly body: readonly Node[];
  readonly defaultBlock: readonly Node[];
}
interface BinaryNode extends Node {
  readonly operator: { readonly value: string };
  readonly left: Node;
  readonly right: Node;
}
interface MemberNode extends Node {
  readonly object: Node;
  readonly property: Node & {
    readonly value?: string;
    readonly start?: Node;
    readonly stop?: Node;
    readonly step?: Node;
  };
  readonly computed: boolean;
}
interface CallNode extends Node {
  readonly callee: Node;
  readonly args: readonly (Node & {
    readonly key?: Named;
    readonly value?: Node;
    readonly argument?: Node;
  })[];
}
interface FilterNode extends Node {
  readonly operand: Node;
  readonly body: readonly Node[];
  readonly filter: Named & CallNode;
}
interface TestNode extends Node {
  readonly operand: Node;
  readonly negate: boolean;
  readonly test: Named;
}

/** Units of one round of a loop: its variables. */
const ROUND = 4;

/** Calls within calls: where they never end, a deep stack makes every collection of garbage slow. Python ends at some 300. */
const DEEPEST_CALLS = 200;

/** `break` or `continue` on its way to the loop, with what the blocks it left had printed. */
class LoopSignal {
  text = "";
  constructor(readonly stop: boolean) {}
}

/** Statements: everything else that stands in a block is an expression whose value is printed. */
const STATEMENTS = new Set([
  "Program",
  "Set",
  "If",
  "For",
  "Macro",
  "CallStatement",
  "FilterStatement",
  "Break",
  "Continue",
  "Comment",
  "Output",
]);

/** Fields of nodes that hold blocks. */
const BLOCKS = ["body", "alternate", "defaultBlock"] as const;

export type TemplateProgram = ReturnType<typeof parse>;

/** Parses a template as transformers does: trim_blocks, lstrip_blocks, one newline at the end dropped. */
export function parseTemplate(source: string): TemplateProgram {
  const tokens = tokenize(source.replace(/\r\n?/g, "\n"), { trim_blocks: true, lstrip_blocks: true });
  const program = parse(tokens);
  markOutputs(program);
  return program;
}

/** Wraps the printed expressions of every block, so that what is printed can be told from what is used. */
function markOutputs(node: unknown): void {
  if (typeof node !== "object" || node === null) return;
  if (node instanceof Map) {
    for (const [key, value] of node) {
      markOutputs(key);
      markOutputs(value);
    }
    return;
  }
  const fields = node as Record<string, unknown>;
  for (const name of BLOCKS) {
    const block = fields[name];
    if (!Array.isArray(block)) continue;
    fields[name] = block.map((child: Node) =>
      STATEMENTS.has(child.type)
        ? child
        : Object.assign(Object.create(Object.getPrototypeOf(child)), { type: "Output", expression: child }),
    );
  }
  for (const child of Object.values(fields)) markOutputs(child);
}

/** Renders a parsed template with the given variables and globals. */
export function renderProgram(
  program: TemplateProgram,
  variables: Readonly<Record<string, unknown>>,
  now: () => Date,
): string {
  const environment = new Environment();
  const define = (name: string, value: Value): void => {
    environment.setVariable(name, value as RuntimeValue);
  };
  for (const [names, value] of CONSTANTS) for (const name of names) define(name, value);
  define("range", fn(range));
  define("dict", fn(makeDict));
  define(
    "raise_exception",
    fn((args) => {
      throw new Error(toStr(bind(args, "message")[0] ?? NONE));
    }),
  );
  define(
    "strftime_now",
    fn((args) => str(strftime(now(), toStr(bind(args, "format")[0] ?? NONE)))),
  );
  for (const [name, value] of Object.entries(variables)) define(name, fromPlain(value));
  return withBudget(variables, () => toStr(new PythonInterpreter(environment).run(program)));
}

const CONSTANTS: readonly (readonly [readonly string[], Value])[] = [
  [["true", "True"], bool(true)],
  [["false", "False"], bool(false)],
  [["none", "None"], NONE],
];

function range(args: Value[]): Value {
  const numbers = args.map((arg) => {
    if (!isInt(arg)) throw new Error(`'${typeName(arg)}' object cannot be interpreted as an integer`);
    return arg.value;
  });
  const [start, stop, step = 1] = numbers.length === 1 ? [0, numbers[0]!] : numbers;
  if (start === undefined || stop === undefined || step === 0) throw new Error("range() arguments are wrong");
  const size = Math.max(0, Math.ceil((stop - start) / step));
  // Jinja's sandbox: MAX_RANGE.
  if (size > 100_000) throw new Error("Range too big. The sandbox blocks ranges larger than 100000");
  return list(Array.from({ length: size }, (_, i) => int(start + i * step)));
}

/**
 * The package's interpreter with Python's meaning of what it evaluates differently: printing, equality,
 * arithmetic, methods, filters, tests, slices and the scope of loops.
 */
class PythonInterpreter extends Interpreter {
  #calls = 0;

  override evaluate(statement: Statement, environment: Environment): RuntimeValue {
    return this.#evaluate(statement as Node | undefined, environment) as RuntimeValue;
  }

  #evaluate(node: Node | undefined, scope: Environment): Value {
    spend(1);
    switch (node?.type) {
      case "Output":
        return str(toStr(this.#evaluate((node as Node & { expression: Node }).expression, scope)));
      case "For":
        return this.#loop(node as ForNode, scope);
      case "If": {
        const { test, body, alternate } = node as IfNode;
        return str(this.#block(truthy(this.#evaluate(test, scope)) ? body : alternate, scope));
      }
      case "Break":
        throw new LoopSignal(true);
      case "Continue":
        throw new LoopSignal(false);
      case "BinaryExpression":
        return this.#binary(node as BinaryNode, scope);
      case "MemberExpression":
        return this.#member(node as MemberNode, scope);
      case "CallExpression":
        return this.#call(node as CallNode, scope);
      case "FilterExpression":
        return this.#filter(this.#evaluate((node as FilterNode).operand, scope), node as FilterNode, scope);
      case "FilterStatement":
        return this.#filter(str(this.#block((node as FilterNode).body, scope)), node as FilterNode, scope);
      case "TestExpression": {
        const { operand, negate, test: name } = node as TestNode;
        const test = findTest(name.value);
        if (test === undefined) throw new Error(`No test named '${name.value}'.`);
        const value = this.#evaluate(operand, scope);
        spendReading(value);
        return bool(test(value) !== negate);
      }
      default:
        return super.evaluate(node as Statement, scope);
    }
  }

  #block(nodes: readonly Node[], scope: Environment): string {
    let text = "";
    try {
      for (const node of nodes) {
        const value = this.#evaluate(node, scope);
        if (isString(value)) text += value.value;
      }
    } catch (signal) {
      if (signal instanceof LoopSignal) signal.text = text + signal.text;
      throw signal;
    }
    return text;
  }

  #loop(node: ForNode, scope: Environment): Value {
    const { loopvar, iterable, body, defaultBlock } = node;
    const selected = iterable.type === "SelectExpression";
    const all = itemsOf(this.#evaluate(selected ? iterable.lhs : iterable, scope));
    const assign = (item: Value, inner: Environment): void => {
      if (typeof loopvar.value === "string") {
        inner.setVariable(loopvar.value, item as RuntimeValue);
        return;
      }
      const parts = itemsOf(item);
      if (parts.length !== loopvar.value.length) {
        throw new Error(`cannot unpack ${parts.length} values into ${loopvar.value.length} names`);
      }
      loopvar.value.forEach((name, i) => {
        inner.setVariable(name.value, parts[i]! as RuntimeValue);
      });
    };
    const items = selected
      ? all.filter((item) => {
          const inner = new Environment(scope);
          assign(item, inner);
          return truthy(this.#evaluate(iterable.test, inner));
        })
      : all;
    if (items.length === 0) return str(this.#block(defaultBlock, new Environment(scope)));
    let text = "";
    let changed: Value | undefined;
    for (let i = 0; i < items.length; i++) {
      spend(ROUND);
      // What a body sets lives for one round.
      const inner = new Environment(scope);
      const loop: [string, Value][] = [
        ["index", int(i + 1)],
        ["index0", int(i)],
        ["revindex", int(items.length - i)],
        ["revindex0", int(items.length - i - 1)],
        ["first", bool(i === 0)],
        ["last", bool(i === items.length - 1)],
        ["length", int(items.length)],
        ["previtem", items[i - 1] ?? UNDEFINED],
        ["nextitem", items[i + 1] ?? UNDEFINED],
        ["cycle", fn((args) => args[i % args.length] ?? UNDEFINED)],
        [
          "changed",
          fn((args) => {
            const now = list(args);
            const same = changed !== undefined && equal(changed, now);
            changed = now;
            return bool(!same);
          }),
        ],
      ];
      inner.setVariable("loop", dict(new Map(loop)) as RuntimeValue);
      assign(items[i]!, inner);
      try {
        text += this.#block(body, inner);
      } catch (signal) {
        if (!(signal instanceof LoopSignal)) throw signal;
        text += signal.text;
        if (signal.stop) break;
      }
    }
    return str(text);
  }

  #binary(node: BinaryNode, scope: Environment): Value {
    const operator = node.operator.value;
    const left = this.#evaluate(node.left, scope);
    if (operator === "and") return truthy(left) ? this.#evaluate(node.right, scope) : left;
    if (operator === "or") return truthy(left) ? left : this.#evaluate(node.right, scope);
    const right = this.#evaluate(node.right, scope);
    switch (operator) {
      case "==":
        return bool(equal(left, right));
      case "!=":
        return bool(!equal(left, right));
      case "in":
        return bool(contains(right, left));
      case "not in":
        return bool(!contains(right, left));
      case "~":
        return joined(toStr(left), toStr(right));
    }
    spendReading(left);
    spendReading(right);
    for (const side of [left, right]) if (isUndefined(side)) throw new Error("a value is undefined");
    switch (operator) {
      case "<":
        return bool(compare(left, right) < 0);
      case "<=":
        return bool(compare(left, right) <= 0);
      case ">":
        return bool(compare(left, right) > 0);
      case ">=":
        return bool(compare(left, right) >= 0);
      default:
        return arithmetic(operator, left, right);
    }
  }

  #member(node: MemberNode, scope: Environment): Value {
    const object = this.#evaluate(node.object, scope);
    if (isUndefined(object)) {
      throw new Error(`${describe(node.object)} is undefined`);
    }
    const { property } = node;
    if (node.computed && property.type === "SliceExpression") {
      const [start, stop, step] = [property.start, property.stop, property.step].map((part) => {
        const value = part === undefined ? UNDEFINED : this.#evaluate(part, scope);
        if (isUndefined(value) || isNone(value)) return undefined;
        if (!isInt(value)) throw new Error("slice indices must be integers or None");
        return value.value;
      });
      return slice(object, start, stop, step);
    }
    if (!node.computed && typeof property.value === "string") {
      // a.b: Jinja asks for the attribute first, so that `d.items` is the method even where d has a key.
      return methodOf(object, property.value) ?? item(object, str(property.value));
    }
    const key = node.computed ? this.#evaluate(property, scope) : int(Number(property.value));
    const found = item(object, key);
    return isUndefined(found) && isString(key) ? (methodOf(object, key.value) ?? UNDEFINED) : found;
  }

  #call(node: CallNode, scope: Environment): Value {
    const callee = this.#evaluate(node.callee, scope);
    if (!isFunction(callee)) {
      const what = describe(node.callee);
      throw new Error(isUndefined(callee) ? `${what} is undefined` : `${what} is not callable`);
    }
    const args = this.#arguments(node.args, scope);
    if (this.#calls === DEEPEST_CALLS)
      throw new Error(`it calls more than ${DEEPEST_CALLS} macros in macros`);
    this.#calls += 1;
    try {
      return callee.value(args, scope);
    } finally {
      this.#calls -= 1;
    }
  }

  #filter(operand: Value, { filter: node }: FilterNode, scope: Environment): Value {
    const called = node.type === "CallExpression";
    const name = called ? (node.callee as Named).value : node.value;
    const filter = findFilter(name);
    if (filter === undefined) throw new Error(`No filter named '${name}'.`);
    if (filter !== findFilter("length")) spendReading(operand);
    return filter(operand, called ? this.#arguments(node.args, scope) : []);
  }

  /** Positional arguments, then the keyword arguments in the package's own wrapper. */
  #arguments(nodes: CallNode["args"], scope: Environment): Value[] {
    const positional: Value[] = [];
    const keywords = new Map<string, Value>();
    for (const node of nodes) {
      switch (node.type) {
        case "KeywordArgumentExpression":
          keywords.set(node.key!.value, this.#evaluate(node.value, scope));
          break;
        case "SpreadExpression":
          positional.push(...itemsOf(this.#evaluate(node.argument, scope)));
          break;
        case "KeywordSpreadExpression": {
          const spread = this.#evaluate(node.argument, scope);
          if (!isDict(spread)) throw new Error("argument after ** must be a mapping");
          for (const [key, value] of spread.value) keywords.set(key, value);
          break;
        }
        default:
          positional.push(this.#evaluate(node, scope));
      }
    }
    if (keywords.size > 0) positional.push(keywordArguments(keywords));
    return positional;
  }
}

/** Units for going through a text or a list once. */
function spendReading(v: Value): void {
  if (isString(v)) spendText(v.value.length);
  else if (isList(v)) spend(v.value.length >> 2);
}

function joined(a: string, b: string): Value {
  spendText(a.length + b.length);
  return str(a + b);
}

/** What an expression is called in a message. */
function describe(node: Node): string {
  if (node.type === "Identifier") return `'${(node as Named).value}'`;
  if (node.type === "MemberExpression") {
    const { object, property, computed } = node as MemberNode;
    if (!computed) return `${describe(object)}.${property.value}`;
    return `${describe(object)}[…]`;
  }
  return "a value";
}
