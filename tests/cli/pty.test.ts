import { expect, test } from "bun:test";
import { KEYS, Pty, plain } from "../pty.ts";

test("a program sees a terminal, its size, what is typed and Ctrl-C", async () => {
  await using sh = new Pty(["sh", "-c", 'stty size; read line; echo "got:$line, then more"; sleep 60'], {
    cols: 71,
    rows: 19,
  });
  await sh.waitFor("19 71");
  sh.write(`hällo${KEYS.enter}`);
  expect(await sh.waitFor(/got:h.llo/)).toEndWith("got:hällo");
  await sh.waitFor("more");
  sh.write(KEYS.ctrlC);
  expect(await sh.exit()).toBe(130);
});

test("text comes without escape sequences, and an end that came too early says what was there", async () => {
  expect(plain("\x1b[2J\x1b[1;31mred\x1b[0m\r\n\x1b]0;title\x07x\x1b[?25h")).toBe("red\nx");
  await using sh = new Pty(["sh", "-c", "printf '\\033[1mbold\\033[0m'; exit 3"]);
  expect(await sh.exit()).toBe(3);
  expect(sh.text).toBe("bold");
  expect(sh.waitFor("never")).rejects.toThrow(/ended without never in:\nbold/);
});
