/**
 * The chat page in a real Chromium, streaming from the chat process. Pictures are written to RLV_SCREENSHOTS
 * (build/screenshots).
 */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { join, resolve } from "node:path";
import { TemporaryFolder } from "../io/temporary.ts";
import { type Browser, browserProgram, type Page, startBrowser } from "./browser.ts";
import { chatWorld, serveChat } from "./chat-world.ts";

const pictures = process.env.RLV_SCREENSHOTS || join(resolve(import.meta.dir, "../.."), "build/screenshots");
const chromium = browserProgram();
if (chromium === null) process.stderr.write("skip tests/web/chat: no chromium: apt install chromium\n");

describe.skipIf(chromium === null)("the chat page", () => {
  const folder = new TemporaryFolder();
  let browser: Browser;
  let page: Page;
  let chat: ReturnType<typeof serveChat>;
  beforeAll(async () => {
    chat = serveChat(chatWorld(folder.path));
    browser = await startBrowser(chromium!);
    page = await browser.page();
    await page.view({ width: 1300, height: 860 });
    await page.open(`${chat.server.address}#/chat?m=given-0`);
    await until("document.querySelector('.chat .composer textarea')");
  }, 90_000);
  afterAll(async () => {
    await browser?.[Symbol.asyncDispose]();
    await chat?.server.stop();
    folder[Symbol.dispose]();
  });

  const replies = "[...document.querySelectorAll('.chat .reply:not(.none)')]";
  const settled = `${replies}.length > 0 && ${replies}.every((r) => r.getAttribute('aria-busy') === 'false')`;
  const until = (expression: string, what?: string) => page.until(expression, what, 20_000);
  const text = (selector: string, at = 0) =>
    page.value<string>(`document.querySelectorAll(${JSON.stringify(selector)})[${at}].textContent`);
  const send = async (message: string) => {
    await page.fill(".composer textarea", message);
    await page.press("Enter");
  };

  test("a message streams a reply, the next one reuses what was encoded; no script runs", async () => {
    const hostile = '<img src=x onerror="window.__x = 1"><script>window.__x = 1</script> hello';
    await send(hostile);
    await until(settled);
    expect(await text(".asked .text")).toBe(hostile);
    expect(await text(".reply .under")).toMatch(/tokens.*prompt \d+: 0 reused, \d+ encoded/);
    await send("and then?");
    await until(`${replies}.length === 2 && ${settled}`);
    expect(await text(".reply .under", 1)).toMatch(/[1-9]\d* reused/);
    expect(await page.value("window.__x === undefined")).toBe(true);
    expect(await page.value("document.querySelectorAll('.asked img, .reply img').length")).toBe(0);
    expect(await page.value("document.querySelector('.composer textarea').value")).toBe("");
  }, 90_000);

  test("a token under the pointer tells its log-probability and what else was likely", async () => {
    await page.hover(".exchange:last-child .reply > .text .token");
    await until("document.querySelector('.alternatives')");
    expect(await text(".figures")).toMatch(/log p .*p \d/);
    expect(await page.value("document.querySelectorAll('.alternatives > span').length")).toBe(5);
    await page.click(".toolbar button[aria-pressed]");
    await until("document.querySelector('.reply .token.heat')");
    await page.picture(join(pictures, "chat-shaded.png"));
    await page.click(".toolbar button[aria-pressed]");
  }, 90_000);

  test("regenerate draws another reply, edit puts another message and drops what followed", async () => {
    const before = await text(".exchange:last-child .reply > .text");
    await page.click(".exchange:last-child .reply button.icon");
    await until(
      `${settled} && document.querySelector('.exchange:last-child .reply > .text').textContent !== ${JSON.stringify(before)}`,
    );
    expect(await text(".exchange:last-child .under")).toMatch(/, 1 encoded/);
    await page.click(".exchange:first-child .asked .link");
    await page.fill(".asked textarea", "something else");
    await page.press("Enter");
    await until(`${replies}.length === 1 && ${settled}`);
    expect(await text(".asked .text")).toBe("something else");
  }, 90_000);

  test("Shift+Enter breaks the line; Escape stops a long reply, which stays as it is", async () => {
    await page.open(`${chat.base}/#/chat`);
    await page.value(`(() => {
      const select = document.querySelector('.head select');
      select.value = 'given-1';
      select.dispatchEvent(new Event('change', { bubbles: true }));
    })()`);
    await page.click(".toolbar button[aria-expanded]");
    await until("document.querySelector('.settings')");
    const set = (label: string, value: number) =>
      page.value(`(() => {
        const field = [...document.querySelectorAll('.settings .field')].find((f) => f.textContent.startsWith(${JSON.stringify(label)}));
        const input = field.querySelector('input[type=number]');
        input.value = ${value};
        input.dispatchEvent(new Event('change', { bubbles: true }));
      })()`);
    await set("Temperature", 0);
    await set("Longest reply", 8000);
    await page.fill(".settings .system textarea", "Be brief.");
    await page.picture(join(pictures, "chat-settings.png"));
    await page.click(".toolbar button[aria-expanded]");
    await page.fill(".composer textarea", "one");
    await page.value(`document.querySelector('.composer textarea').dispatchEvent(
      new KeyboardEvent('keydown', { key: 'Enter', shiftKey: true, bubbles: true, cancelable: true }))`);
    expect(await page.value(`${replies}.length`)).toBe(1);
    await page.press("Enter");
    await until("document.querySelectorAll('.reply .token').length > 200", "tokens come as they are drawn");
    expect(await page.value("document.querySelector('.composer .danger') !== null")).toBe(true);
    await page.press("Escape");
    await until(settled, "the reply has ended");
    expect(await text(".exchange:last-child .under")).toContain("stopped");
  }, 90_000);

  test("before and after side by side: one message, two streams, each with its own reply", async () => {
    await page.click(".toolbar > button:last-child");
    await until("document.querySelectorAll('.exchange').length === 0");
    await page.value(`(() => {
      const select = document.querySelector('.toolbar select');
      select.value = select.options[1].value;
      select.dispatchEvent(new Event('change', { bubbles: true }));
    })()`);
    await until("document.querySelectorAll('.head').length === 2");
    await until("/_base(%2C|,).*_final/.test(location.hash)");
    await send("hello");
    await until(`${replies}.length === 2 && ${settled}`);
    expect(await text(".reply > .text", 0)).not.toBe(await text(".reply > .text", 1));
    await page.picture(join(pictures, "chat-side-by-side.png"));
    await page.view({ width: 1300, height: 860, dark: true });
    await page.picture(join(pictures, "chat-dark.png"));
    await page.view({ width: 390, height: 800, phone: true });
    await page.picture(join(pictures, "chat-phone.png"));
    expect(await page.value("document.documentElement.scrollWidth <= innerWidth")).toBe(true);
    await page.view({ width: 1300, height: 860 });
  }, 90_000);

  test("a model with retain and forget adapters has sliders for their scales", async () => {
    await page.open(`${chat.base}/#/chat?m=given-2`);
    await page.value("location.reload()");
    await until("document.querySelectorAll('.head').length === 1 && document.querySelector('.head .link')");
    await page.click(".head .link");
    await until("document.querySelectorAll('.scales input').length === 2");
    await send("hello");
    await until(`${replies}.length === 1 && ${settled}`);
    const before = await text(".reply > .text");
    await page.value(`(() => {
      const input = document.querySelectorAll('.scales input')[1];
      input.value = 0;
      input.dispatchEvent(new Event('input', { bubbles: true }));
    })()`);
    await until("document.querySelectorAll('.scales output')[1].textContent === '0'");
    await page.click(".reply button.icon");
    await until(
      `${settled} && document.querySelector('.reply > .text').textContent !== ${JSON.stringify(before)}`,
    );
    await page.picture(join(pictures, "chat-scales.png"));
  }, 90_000);

  test("a chat process that dies is told, and the same message works again", async () => {
    // Whoever runs the tests may see what a crash prints.
    const pids = Bun.spawnSync(["pgrep", "-P", String(process.pid), "-f", "__chat"])
      .stdout.toString()
      .trim();
    expect(pids).toMatch(/^\d+$/);
    process.kill(Number(pids), "SIGKILL");
    await page.click(".toolbar > button:last-child");
    await Bun.sleep(300);
    await send("are you there?");
    await until(`${replies}.length === 1 && ${settled}`);
    expect(
      await page.value("[...document.querySelectorAll('.reply .notice')].map((n) => n.textContent)"),
    ).toEqual([]);
    expect(page.problems).toEqual([]);
  }, 90_000);
});
