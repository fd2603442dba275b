/**
 * Programs that run tests inside the sandbox. Each verdict is a line that begins with a mark made for this process
 * alone, so that what the code prints is not taken for one; a test without a verdict has failed.
 */

/** Reads { code, tests, entryPoint, mark } from stdin. A test runs in a copy of what the code defined. */
export const PYTHON_DRIVER = `
import json, os, sys, io
spec = json.loads(sys.stdin.read())
sys.stdin = io.StringIO("")
def run(spec):
    mark, write, dumps, leave = spec.pop("mark"), os.write, json.dumps, os._exit
    def say(test, error):
        write(1, ("\\n" + mark + dumps({"test": test, "error": error}) + "\\n").encode())
    def text(error):
        return (type(error).__name__ + ": " + str(error))[:300].encode("utf-8", "replace").decode()
    entry, space, failed = spec["entryPoint"], {"__name__": "solution"}, None
    try:
        exec(compile(spec["code"], "solution.py", "exec"), space)
    except BaseException as error:
        failed = text(error)
    for i, test in enumerate(spec["tests"]):
        error = failed
        if error is None:
            try:
                own = dict(space)
                exec(compile(test, "test.py", "exec"), own)
                if entry is not None and callable(own.get("check")) and "check" not in space:
                    own["check"](own[entry])
            except BaseException as caught:
                error = text(caught)
        say(i, error)
    sys.stdout.flush()
    leave(0)
run(spec)
`;

/** Reads { mark, files } from stdin and imports the files, each the code with one test behind it. */
export const JAVASCRIPT_DRIVER = `
const { readFileSync, writeSync } = require("node:fs");
globalThis.assert = require("node:assert");
const { mark, files } = JSON.parse(readFileSync(0, "utf8"));
const { stringify } = JSON, { exit } = process;
(async () => {
  for (let test = 0; test < files.length; test++) {
    let error = null;
    try {
      await import(files[test]);
    } catch (thrown) {
      error = String(thrown?.name ?? "Error") + ": " + String(thrown?.message ?? thrown).slice(0, 300);
    }
    writeSync(1, "\\n" + mark + stringify({ test, error }) + "\\n");
  }
  exit(0);
})();
`;

/** A module of the code and one test; a function \`check\` of the test is given the entry point. */
export function testModule(code: string, test: string, entryPoint: string | null): string {
  const call =
    entryPoint !== null && /^[\p{ID_Start}$_][\p{ID_Continue}$]*$/u.test(entryPoint)
      ? `\n;if (typeof check === "function") await check(${entryPoint});`
      : "";
  return `${code}\n;\n${test}${call}\n`;
}
