/** Chat templates come from elsewhere: whatever they do, a text or a typed error comes back, in bounded time and memory. */
import { expect, test } from "bun:test";
import { join } from "node:path";
import { UsageError } from "../../src/core/errors.ts";
import { renderChat } from "../../src/io/template.ts";
import { fuzz } from "./fuzz.ts";
import { LONG_LIMIT, long } from "./ledger.ts";

test(
  "programs by chance",
  async () => {
    await fuzz(join(import.meta.dir, "template-cases.ts"), "chat templates", 600);
  },
  long ? LONG_LIMIT : 120_000,
);

test.each([
  ["loops in loops", "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}"],
  ["a loop that prints", "{% for a in range(100000) %}{{ messages * 1000 }}{% endfor %}"],
  [
    "text that doubles",
    `{% set ns = namespace(a='ab') %}{% for a in range(99) %}{% set ns.a = ns.a ~ ns.a %}{% endfor %}`,
  ],
  ["a list in itself, twice each", `${"{% set x = [x, x] %}".repeat(60)}{{ x }}`],
  ["such a list as JSON", `{% set x = 1 %}${"{% set x = [x, x] %}".repeat(60)}{{ x | tojson }}`],
  ["such a list compared", `${"{% set x = [x, x] %}{% set y = [y, y] %}".repeat(60)}{{ x == y }}`],
  ["a macro without end", "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}"],
  [
    "such a macro in loops",
    "{% macro f(x) %}{% for a in x %}{% for b in range(40) %}{% set y = x %}{% endfor %}{{ f([x, x]) }}{% endfor %}" +
      "{% endmacro %}{{ f([1, 2]) }}",
  ],
  ["a namespace in itself", "{% set ns = namespace() %}{% set ns.a = ns %}{{ ns | tojson }}"],
  ["text times a number", "{{ 'abc' * 4000000000 }}"],
  ["a list times a number", "{{ ([0] * 4000000000) | length }}"],
  ["a wide column", "{{ 'a'.center(4000000000) }}"],
  ["zeros", "{{ 'a'.zfill(4000000000) }}"],
  ["rows of many", "{{ [1] | batch(4000000000, 0) }}"],
  ["an indent", "{{ 'a' | indent(4000000000, true) }}"],
  ["JSON's indent", "{{ messages | tojson(indent=4000000000) }}"],
  ["replacement", "{{ ('a' * 1000000) | replace('a', 'b' * 1000000) }}"],
  ["a separator", "{{ range(100000) | join('b' * 1000000) }}"],
])("%s: a typed error within seconds", (_, template) => {
  const since = performance.now();
  expect(() => renderChat({ template }, [{ role: "user", content: "a" }])).toThrow(UsageError);
  expect(performance.now() - since).toBeLessThan(10_000);
});

test("a chat of five thousand messages stays within the budget", () => {
  const template =
    "{% for m in messages %}<{{ m.role }}>{% if m.content is string and m.role != 'tool' %}{{ m.content | trim }}" +
    "{% endif %}{% if loop.last %}.{% endif %}{% if messages | length < 3 %}?{% endif %}{% endfor %}";
  const messages = Array.from({ length: 5000 }, () => ({ role: "user", content: "word ".repeat(400) }));
  const text = renderChat({ template }, messages);
  expect(text.length).toBe(5000 * ("<user>".length + 1999) + 1);
});
