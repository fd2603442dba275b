/** The bill of materials of a release, CycloneDX 1.5: npm's own of the lockfile, and what npm does not know of. */
import { createHash } from "node:crypto";
import { fail, root } from "../objects.ts";
import { type Target, thirdParties } from "./third-party.ts";

interface Component {
  readonly "bom-ref": string;
  readonly type: string;
  readonly name: string;
  readonly version: string;
  readonly purl?: string;
  readonly licenses: readonly object[];
}

interface Bom {
  serialNumber?: string;
  metadata: { timestamp: string; component: Component };
  components: Component[];
  dependencies: { ref: string; dependsOn: string[] }[];
}

/** A UUID (version 8, RFC 9562) that is a function of a text. */
function uuidOf(text: string): string {
  const hex = createHash("sha256").update(text).digest("hex");
  const variant = ((Number.parseInt(hex[16]!, 16) & 3) | 8).toString(16);
  return [
    hex.slice(0, 8),
    hex.slice(8, 12),
    `8${hex.slice(13, 16)}`,
    `${variant}${hex.slice(17, 20)}`,
    hex.slice(20, 32),
  ].join("-");
}

/** The licences of npm's components are its own; of the others they are expressions. */
export function billOfMaterials(targets: readonly Target[], seconds: number): string {
  const { exitCode, stdout, stderr } = Bun.spawnSync(
    ["npm", "sbom", "--sbom-format", "cyclonedx", "--omit", "dev", "--package-lock-only"],
    { cwd: root },
  );
  if (exitCode !== 0)
    fail(`cannot list the packages: npm sbom: ${stderr.toString().trim().split("\n").at(-1)}`);
  const bom: Bom = JSON.parse(stdout.toString());
  const own = bom.metadata.component;
  const known = new Set(bom.components.map(({ purl }) => purl));
  const others = new Map(
    targets
      .flatMap(thirdParties)
      .filter(({ purl }) => !known.has(purl))
      .map(({ name, version, licence, purl }) => [
        name,
        {
          "bom-ref": `${name}@${version}`,
          type: "library",
          name,
          version,
          purl,
          licenses: [{ expression: licence }],
        },
      ]),
  );
  bom.metadata.timestamp = new Date(1000 * seconds).toISOString();
  bom.metadata.component = { ...own, type: "application", name: "rlv" };
  bom.components.push(...others.values());
  bom.dependencies
    .find(({ ref }) => ref === own["bom-ref"])
    ?.dependsOn.push(...[...others.values()].map((each) => each["bom-ref"]));
  delete bom.serialNumber;
  const text = JSON.stringify(bom);
  return `${JSON.stringify({ ...bom, serialNumber: `urn:uuid:${uuidOf(text)}` }, null, 2)}\n`;
}
