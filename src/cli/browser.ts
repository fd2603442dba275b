import { environment } from "../core/env.ts";

/** Opens an address in the browser of a desktop; where there is none, nothing happens: the address was printed. */
export function openBrowser(address: string): void {
  if (process.stdout.isTTY !== true) return;
  const mac = process.platform === "darwin";
  if (!mac && environment("DISPLAY") === undefined && environment("WAYLAND_DISPLAY") === undefined) return;
  const program = Bun.which(mac ? "open" : "xdg-open");
  if (program === null) return;
  Bun.spawn([program, address], { stdio: ["ignore", "ignore", "ignore"] }).unref();
}
