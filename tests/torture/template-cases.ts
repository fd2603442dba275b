/** Programs of Jinja's grammar by chance, run by fuzz.ts. */
import fc from "fast-check";
import { renderChat } from "../../src/io/template.ts";
import { runCases } from "./fuzz-child.ts";

const FILTERS = [
  ..."abs batch(3) capitalize count default(1) dictsort escape first float groupby('role') indent(9) int items".split(
    " ",
  ),
  ..."join(',') last length list lower map('upper') max min reject replace('a','bb') reverse round safe".split(
    " ",
  ),
  ..."select selectattr('role') sort string sum title tojson trim unique upper wordcount".split(" "),
  ..."batch(100000000,1) indent(100000000) tojson(indent=1000000) replace('','aaaaaaaaaaaaaaaaaaaaaa')".split(
    " ",
  ),
  ..."map('replace','','aaaaaaaa') join('aaaaaaaaaaaaaaaaaaaaa') nosuch round(400) sum(start='a')".split(" "),
];
const METHODS = [
  ..."upper() split() split('') split('a') strip('a') center(100000000) zfill(1000000000) items() keys()".split(
    " ",
  ),
  ..."join(x) replace('','aaaaaaaa') rsplit('a',1) splitlines() partition('a') get('a') index(1) count('a')".split(
    " ",
  ),
  ..."append(x) startswith('a') title() ljust(3,'ab') rjust(99999999999) copy() nosuch() x.y.z".split(" "),
];
const NAMES = ["x", "y", "messages", "tools", "ns.a", "ns.b", "ns", "loop.index", "loop", "m", "f", "range"];

const name = fc.constantFrom(...NAMES);
const atom = fc.oneof(
  name,
  fc.constantFrom(
    "1",
    "0",
    "-1",
    "2",
    "100000",
    "1e9",
    "0.5",
    "none",
    "true",
    "''",
    "'a'",
    "'ab' * 7",
    "[]",
    "{}",
  ),
  fc.nat({ max: 2 ** 31 }).map(String),
  fc.string({ maxLength: 6 }).map((text) => JSON.stringify(text)),
);
const { expression } = fc.letrec<{ expression: string; deeper: string }>((tie) => ({
  expression: fc.oneof({ maxDepth: 5, depthSize: "medium" }, { weight: 2, arbitrary: atom }, tie("deeper")),
  deeper: fc.oneof(
    fc
      .tuple(
        tie("expression"),
        fc.constantFrom(..."+ - * / // % ** ~ == != < >= and or in".split(" "), "not in"),
        tie("expression"),
      )
      .map(([a, op, b]) => `(${a} ${op} ${b})`),
    fc.tuple(tie("expression"), fc.constantFrom(...FILTERS)).map(([a, filter]) => `(${a} | ${filter})`),
    fc.tuple(tie("expression"), fc.constantFrom(...METHODS)).map(([a, method]) => `(${a}).${method}`),
    fc.tuple(tie("expression"), tie("expression")).map(([a, b]) => `${a}[${b}]`),
    fc.tuple(tie("expression"), tie("expression")).map(([a, b]) => `(${a})[${b}:]`),
    fc.tuple(tie("expression"), tie("expression")).map(([a, b]) => `[${a}, ${b}]`),
    fc.tuple(tie("expression"), tie("expression")).map(([a, b]) => `{'a': ${a}, 'b': ${b}}`),
    tie("expression").map((a) => `range(${a})`),
    tie("expression").map((a) => `f(${a})`),
    fc
      .tuple(tie("expression"), tie("expression"), tie("expression"))
      .map(([a, b, c]) => `(${a} if ${b} else ${c})`),
    fc
      .tuple(
        tie("expression"),
        fc.constantFrom("defined", "mapping", "string", "even", "lower", "none", "nosuch"),
      )
      .map(([a, test]) => `(${a} is ${test})`),
  ),
}));
const { block } = fc.letrec<{ block: string; statement: string }>((tie) => ({
  block: fc.array(tie("statement"), { maxLength: 4 }).map((parts) => parts.join("")),
  statement: fc.oneof(
    { maxDepth: 5, depthSize: "medium" },
    fc.string({ maxLength: 8 }),
    expression.map((a) => `{{ ${a} }}`),
    fc
      .tuple(fc.constantFrom("x", "y", "ns.a", "ns.b"), expression)
      .map(([to, a]) => `{% set ${to} = ${a} %}`),
    // What grows by itself.
    fc.constantFrom("{% set x = [x, x] %}", "{% set ns.a = ns.a ~ ns.a %}", "{% set ns.a = [ns.a, ns.a] %}"),
    fc.constantFrom(
      "{% set ns.b = ns %}",
      "{{ f(x) }}",
      "{% break %}",
      "{% continue %}",
      "{%- raw -%}",
      "{#",
    ),
    fc
      .tuple(fc.constantFrom("x", "y", "m", "a, b"), expression, tie("block"))
      .map(([to, of, body]) => `{% for ${to} in ${of} %}${body}{% endfor %}`),
    fc
      .tuple(fc.constantFrom("range(100000)", "range(40)", "messages", "ns.a", "x"), tie("block"))
      .map(([of, body]) => `{% for m in ${of} %}${body}{% endfor %}`),
    fc
      .tuple(expression, tie("block"), tie("block"))
      .map(([a, b, c]) => `{% if ${a} %}${b}{% else %}${c}{% endif %}`),
    fc
      .tuple(fc.constantFrom("", "x", "x, y=1"), tie("block"))
      .map(([of, body]) => `{% macro f(${of}) %}${body}{% endmacro %}`),
    fc
      .tuple(fc.constantFrom(...FILTERS), tie("block"))
      .map(([filter, body]) => `{% filter ${filter} %}${body}{% endfilter %}`),
  ),
}));

/** Whole programs, and some with bytes changed. */
const template = fc.oneof(
  { weight: 5, arbitrary: block },
  {
    weight: 1,
    arbitrary: fc
      .tuple(block, fc.nat(), fc.nat({ max: 8 }), fc.string({ maxLength: 4 }))
      .map(([text, at, cut, put]) => {
        const from = text.length === 0 ? 0 : at % text.length;
        return text.slice(0, from) + put + text.slice(from + cut);
      }),
  },
);

const [, cases, seed] = process.argv.slice(2);
const messages = [
  { role: "user", content: "Hello a" },
  {
    role: "assistant",
    content: [{ type: "text", text: "ab" }],
    tool_calls: [{ name: "f", arguments: { a: 1 } }],
  },
];
await runCases(
  template,
  Number(cases),
  Number(seed),
  (text) => {
    renderChat({ template: `{% set ns = namespace(a='a', b=[1]) %}${text}` }, messages, {
      x: [1, "a"],
      y: "aba",
    });
  },
  // All units of a budget.
  4000,
);
