/** The contract, loaded from its descriptor image. */
import { readFileSync } from 'node:fs';
import { makeGenericClientConstructor } from '@grpc/grpc-js';
import { loadFileDescriptorSetFromObject } from '@grpc/proto-loader';
import descriptor from 'protobufjs/ext/descriptor/index.js';

const IMAGE = new URL('../../../generated/bxmesh/contract/bxmesh.binpb', import.meta.url);

export const MESSAGE_OPTIONS = { longs: Number, enums: String, defaults: true };

/** Every message, enumeration and service of the contract, by its full name. */
export const contract = load();

/** A client of all services that are used here, whose methods all have different names. */
export const MeshClient = makeGenericClientConstructor(
  {
    ...contract['bxmesh.geometry.v1.GeometryService'],
    ...contract['bxmesh.registry.v1.RegistryService'],
    ...contract['bxmesh.agent.v1.AgentService'],
  },
  'Mesh',
);

/**
 * Returns what is wrong with the names and choices in a message, as field violations.
 *
 * @param {string} type the message's full name
 * @param {Record<string, unknown>} message
 * @returns {{field: string, description: string}[]}
 */
export function violations(type, message) {
  const fields = new Map(contract[type].type.field.map((field) => [field.name, field]));
  return Object.entries(message).flatMap(([name, value]) => {
    const field = fields.get(name);
    if (!field) {
      return [{ field: name, description: `can be ${[...fields.keys()].join(', ')}` }];
    }
    if (field.type !== 'TYPE_ENUM' || value === undefined) return [];
    // The loader names an enumeration without the packages that it shares with the message.
    const scopes = type.split('.').map((_, index, names) => names.slice(0, index).join('.'));
    const names = scopes.map((scope) => (scope ? `${scope}.${field.typeName}` : field.typeName));
    const enumeration = contract[names.findLast((each) => contract[each])].type;
    const choices = enumeration.value.map((each) => each.name).slice(1);
    const known = [value].flat().every((choice) => choices.includes(choice));
    return known ? [] : [{ field: name, description: `can be ${choices.join(', ')}` }];
  });
}

function load() {
  const image = descriptor.FileDescriptorSet.decode(readFileSync(IMAGE));
  for (const file of image.file) {
    if (file.package.startsWith('bxmesh.')) nameAsJavaScriptDoes(file);
  }
  return loadFileDescriptorSetFromObject(image, MESSAGE_OPTIONS);
}

/** Makes model_id `modelId` and TARGET_GEOMETRY `geometry`, in a file or a message. */
function nameAsJavaScriptDoes(scope) {
  for (const field of scope.field ?? []) field.name = camelCase(field.name);
  for (const { name, value } of scope.enumType) {
    const prefix = `${name.replace(/(?<=[a-z])(?=[A-Z])/g, '_').toUpperCase()}_`;
    for (const each of value) each.name = each.name.replace(prefix, '').toLowerCase();
  }
  for (const message of [...(scope.messageType ?? []), ...(scope.nestedType ?? [])]) {
    nameAsJavaScriptDoes(message);
  }
}

function camelCase(name) {
  return name.replace(/_([a-z0-9])/g, (_, letter) => letter.toUpperCase());
}
