select version, usable_from from ceoagent.schema_version
