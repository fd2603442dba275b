/**
 * A real Chromium without a window, driven by the DevTools protocol over its websocket: as much of it as the tests of
 * the page need.
 */
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";

const PROGRAMS = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"];
const PATIENCE_MS = 20_000;

/** The browser's program, or null. */
export function browserProgram(): string | null {
  for (const name of PROGRAMS) {
    const path = Bun.which(name);
    if (path !== null) return path;
  }
  return null;
}

interface Message {
  readonly id?: number;
  readonly method?: string;
  readonly params?: unknown;
  readonly result?: unknown;
  readonly error?: { readonly message: string };
  readonly sessionId?: string;
}

export interface View {
  readonly width: number;
  readonly height: number;
  readonly dark?: boolean;
  readonly phone?: boolean;
}

/** One window. What went wrong in it (exceptions, console errors, violations of its policy) is in `problems`. */
export class Page {
  readonly problems: string[] = [];

  constructor(
    readonly send: <T>(method: string, params?: object) => Promise<T>,
    on: (method: string, does: (params: never) => void) => void,
  ) {
    on(
      "Runtime.exceptionThrown",
      (event: { exceptionDetails: { text: string; exception?: { description?: string } } }) =>
        this.problems.push(event.exceptionDetails.exception?.description ?? event.exceptionDetails.text),
    );
    on(
      "Runtime.consoleAPICalled",
      (event: { type: string; args: { value?: unknown; description?: string }[] }) => {
        if (event.type === "error" || event.type === "assert")
          this.problems.push(event.args.map((each) => String(each.value ?? each.description)).join(" "));
      },
    );
    on("Log.entryAdded", ({ entry }: { entry: { level: string; text: string; url?: string } }) => {
      if (entry.level === "error") this.problems.push(`${entry.text} ${entry.url ?? ""}`.trim());
    });
    on("Audits.issueAdded", ({ issue }: { issue: { code: string; details: object } }) => {
      if (issue.code === "ContentSecurityPolicyIssue") this.problems.push(JSON.stringify(issue.details));
    });
  }

  async view({ width, height, dark = false, phone = false }: View): Promise<void> {
    await this.send("Emulation.setDeviceMetricsOverride", {
      width,
      height,
      deviceScaleFactor: phone ? 2 : 1,
      mobile: phone,
    });
    await this.send("Emulation.setEmulatedMedia", {
      features: [{ name: "prefers-color-scheme", value: dark ? "dark" : "light" }],
    });
  }

  /** Loads an address anew, or follows one that differs behind its # alone. */
  async open(url: string): Promise<void> {
    const { errorText } = await this.send<{ errorText?: string }>("Page.navigate", { url });
    if (errorText !== undefined) throw new Error(`${url}: ${errorText}`);
    await this.until("document.readyState === 'complete'", `${url} has loaded`);
  }

  /** Value of an expression in the page; promises are waited for. */
  async value<T>(expression: string): Promise<T> {
    const { result, exceptionDetails } = await this.send<{
      result: { value: T };
      exceptionDetails?: { text: string; exception?: { description?: string } };
    }>("Runtime.evaluate", { expression, awaitPromise: true, returnByValue: true, userGesture: true });
    if (exceptionDetails)
      throw new Error(`${exceptionDetails.exception?.description ?? exceptionDetails.text} in ${expression}`);
    return result.value;
  }

  /** Waits until an expression is true. */
  async until(expression: string, what = expression, patience = PATIENCE_MS): Promise<void> {
    const end = performance.now() + patience;
    for (;;) {
      // A page that is being left has nobody to answer.
      const now = await this.value<unknown>(`Boolean(${expression})`).catch((error: Error) => error);
      if (now === true) return;
      if (performance.now() > end) {
        const text = await this.value<string>("document.body.innerText").catch(() => "");
        const said = [now instanceof Error ? now.message : "", ...this.problems, text.slice(0, 1500)];
        throw new Error(`it did not come about that ${what}: ${said.filter(Boolean).join("\n")}`);
      }
      await Bun.sleep(40);
    }
  }

  /** Middle of an element, scrolled into sight. */
  async #place(selector: string): Promise<{ x: number; y: number }> {
    const name = JSON.stringify(selector);
    await this.until(`document.querySelector(${name})`, `there is ${selector}`);
    return await this.value(`(() => {
      const element = document.querySelector(${name});
      element.scrollIntoView({ block: "nearest", inline: "nearest" });
      const { left, top, width, height } = element.getBoundingClientRect();
      return { x: left + width / 2, y: top + height / 2 };
    })()`);
  }

  async #mouse(type: string, at: { x: number; y: number }, clicks = 0): Promise<void> {
    const button = type === "mouseMoved" && clicks === 0 ? "none" : "left";
    const buttons = type === "mouseReleased" || button === "none" ? 0 : 1;
    await this.send("Input.dispatchMouseEvent", { type, ...at, button, buttons, clickCount: clicks });
  }

  async click(selector: string, clicks = 1): Promise<void> {
    const at = await this.#place(selector);
    for (let n = 1; n <= clicks; n++) {
      await this.#mouse("mousePressed", at, n);
      await this.#mouse("mouseReleased", at, n);
    }
  }

  async hover(selector: string): Promise<void> {
    await this.#mouse("mouseMoved", await this.#place(selector));
  }

  /** Drags over an element; from and to are shares of its width. */
  async drag(selector: string, from: number, to: number): Promise<void> {
    await this.#place(selector);
    const box = await this.value<{ left: number; top: number; width: number; height: number }>(
      `document.querySelector(${JSON.stringify(selector)}).getBoundingClientRect().toJSON()`,
    );
    const at = (share: number) => ({ x: box.left + share * box.width, y: box.top + box.height / 2 });
    await this.#mouse("mouseMoved", at(from));
    await this.#mouse("mousePressed", at(from), 1);
    for (let n = 1; n <= 4; n++) await this.#mouse("mouseMoved", at(from + ((to - from) * n) / 4), 1);
    await this.#mouse("mouseReleased", at(to), 1);
  }

  /** A key by its KeyboardEvent.key; a single character is typed. */
  async press(key: string): Promise<void> {
    const codes: Record<string, number> = {
      Enter: 13,
      Escape: 27,
      Tab: 9,
      ArrowDown: 40,
      ArrowUp: 38,
      ArrowRight: 39,
    };
    const text = key.length === 1 ? { text: key } : key === "Enter" ? { text: "\r" } : {};
    const which = { key, windowsVirtualKeyCode: codes[key] ?? key.toUpperCase().charCodeAt(0), ...text };
    await this.send("Input.dispatchKeyEvent", { type: "keyDown", ...which });
    await this.send("Input.dispatchKeyEvent", { type: "keyUp", key });
  }

  /** Puts a text into a field as typing does, in the place of what is there. */
  async fill(selector: string, text: string): Promise<void> {
    await this.click(selector);
    await this.value(`document.querySelector(${JSON.stringify(selector)}).select()`);
    await this.send("Input.insertText", { text });
  }

  /** Writes a picture of the window, or of the whole document. */
  async picture(path: string, whole = false): Promise<void> {
    const { data } = await this.send<{ data: string }>("Page.captureScreenshot", {
      format: "png",
      captureBeyondViewport: whole,
    });
    mkdirSync(dirname(path), { recursive: true });
    writeFileSync(path, Buffer.from(data, "base64"));
  }
}

export interface Browser extends AsyncDisposable {
  page(): Promise<Page>;
}

/** Starts the browser with a profile of its own, which is removed with it. */
export async function startBrowser(program: string): Promise<Browser> {
  const profile = mkdtempSync(join(tmpdir(), "rlv-browser-"));
  const root = process.getuid?.() === 0;
  const child = Bun.spawn(
    [
      program,
      "--headless=new",
      "--remote-debugging-port=0",
      `--user-data-dir=${profile}`,
      "--no-first-run",
      "--disable-gpu",
      "--disable-extensions",
      "--disable-background-networking",
      "--disable-component-update",
      "--disable-dev-shm-usage",
      "--hide-scrollbars",
      // Chromium's sandbox refuses root.
      ...(root ? ["--no-sandbox"] : []),
      "about:blank",
    ],
    { stdout: "ignore", stderr: "ignore" },
  );
  const stop = async () => {
    child.kill("SIGKILL");
    await child.exited;
    // Its helpers may still be writing.
    rmSync(profile, { recursive: true, force: true, maxRetries: 20, retryDelay: 100 });
  };
  try {
    const socket = new WebSocket(await address(join(profile, "DevToolsActivePort"), child));
    await new Promise((resolve, reject) => {
      socket.onopen = resolve;
      socket.onerror = () => reject(new Error("the browser's DevTools do not answer"));
    });
    return connected(socket, stop);
  } catch (error) {
    await stop();
    throw error;
  }
}

async function address(file: string, child: { readonly exitCode: number | null }): Promise<string> {
  for (const end = performance.now() + PATIENCE_MS; performance.now() < end; await Bun.sleep(30)) {
    if (child.exitCode !== null) throw new Error(`the browser ended with code ${child.exitCode}`);
    const [port, path] = existsSync(file) ? readFileSync(file, "utf8").split("\n") : [];
    if (port && path) return `ws://127.0.0.1:${port}${path}`;
  }
  throw new Error("the browser does not open its DevTools");
}

function connected(socket: WebSocket, stop: () => Promise<void>): Browser {
  const waiting = new Map<number, { resolve: (value: never) => void; reject: (error: Error) => void }>();
  const listeners = new Map<string, ((params: never) => void)[]>();
  let next = 1;
  socket.onmessage = ({ data }) => {
    const { id, method, params, result, error, sessionId }: Message = JSON.parse(String(data));
    if (id !== undefined) {
      const asked = waiting.get(id);
      waiting.delete(id);
      if (error) asked?.reject(new Error(error.message));
      else asked?.resolve(result as never);
    } else for (const does of listeners.get(`${sessionId} ${method}`) ?? []) does(params as never);
  };
  socket.onclose = () => {
    for (const { reject } of waiting.values()) reject(new Error("the browser is gone"));
  };
  const call = <T>(method: string, params: object, sessionId?: string) =>
    new Promise<T>((resolve, reject) => {
      const id = next++;
      waiting.set(id, { resolve, reject });
      socket.send(JSON.stringify({ id, method, params, sessionId }));
    });
  return {
    async page() {
      const { targetId } = await call<{ targetId: string }>("Target.createTarget", { url: "about:blank" });
      const { sessionId } = await call<{ sessionId: string }>("Target.attachToTarget", {
        targetId,
        flatten: true,
      });
      const page = new Page(
        (method, params = {}) => call(method, params, sessionId),
        (method, does) => {
          const key = `${sessionId} ${method}`;
          listeners.set(key, [...(listeners.get(key) ?? []), does]);
        },
      );
      for (const domain of ["Page", "Runtime", "Log", "Audits", "Network"])
        await page.send(`${domain}.enable`);
      return page;
    },
    async [Symbol.asyncDispose]() {
      socket.close();
      await stop();
    },
  };
}
